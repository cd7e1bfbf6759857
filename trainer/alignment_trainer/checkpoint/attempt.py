"""How an attempt of a gang begins: it claims the next epoch, and takes up where the lineage left off."""

from __future__ import annotations

import logging
from pathlib import Path

from alignment_trainer.checkpoint.claims import (
    Claim,
    checkpoints_folder,
    claim_epoch,
    resume_from,
    start_of,
    tidy_commits,
)
from alignment_trainer.checkpoint.run_state import Commits
from alignment_trainer.process import distributed
from alignment_trainer.process.instance import Instance

log = logging.getLogger(__name__)


def claim_attempt(instance: Instance) -> Claim:
    """Rank 0's claim, on every rank."""
    claim: Claim | None = None
    if distributed.rank() == 0:
        claim = claim_epoch(instance.storage, instance.context.uid, instance.context.life)
        log.info("claimed epoch %d", claim.epoch, extra={"start": claim.start.model_dump() if claim.start else None})
    agreed = distributed.from_first_rank(claim)
    if agreed is None:
        raise RuntimeError("rank 0 made no claim")
    return agreed


def start_folder(instance: Instance, claim: Claim) -> Path | None:
    """The commit to start from: the claim's, else on a job's very first attempt that of another job's storage."""
    source = instance.spec.checkpoint.resume_from
    if claim.start is not None or source is None:
        return start_of(instance.storage, claim)
    return resume_from(Path(instance.context.sources[source]), source).folder


def make_commits(instance: Instance, claim: Claim) -> Commits:
    """The commits of this attempt, under its epoch."""
    storage = instance.storage
    return Commits(
        checkpoints_folder(storage),
        claim.epoch,
        instance.spec.checkpoint.keep,
        tidy=lambda _folder, keep: tidy_commits(storage, claim.epoch, keep),
    )
