"""How an attempt of a gang begins: it claims the next term, and takes up where the lineage left off."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from alignment_trainer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from alignment_trainer.checkpoint.claims import (
    Claim,
    check_term,
    checkpoints_of,
    claim_term,
    prune_checkpoints,
    remove_unfinished,
    resume_from,
    start_of,
)
from alignment_trainer.checkpoint.run_state import Checkpoints
from alignment_trainer.data.storage import storage_at, storage_of
from alignment_trainer.process import distributed
from alignment_trainer.process.instance import Instance

log = logging.getLogger(__name__)


def claim_attempt(instance: Instance) -> Claim:
    """Rank 0's claim, on every rank."""

    def claim() -> Claim:
        storage = storage_of(instance)
        made = claim_term(storage, instance.context.uid, instance.context.life)
        remove_unfinished(storage, made.term)
        log.info("claimed term %d", made.term, extra={"start": made.start.model_dump() if made.start else None})
        return made

    return distributed.ask_first_rank(claim)


@dataclass(frozen=True)
class Start:
    """The checkpoint that an attempt starts from: rank 0 has verified it when it was claimed or found.

    folder: of this machine, with its parts. resumes: it is this job's own, and everything in it is taken up. Another
    job's gives its weights alone.
    """

    checkpoint: Checkpoint
    folder: Path
    resumes: bool = True

    @classmethod
    def of(cls, checkpoint: Checkpoint, resumes: bool = True) -> Start:
        return cls(checkpoint, checkpoint.here(), resumes)


def find_start(instance: Instance, claim: Claim) -> Start | None:
    """The claim's, else, as long as this job has saved nothing, that of the storage in checkpoint.resumeFrom.

    None for the model as it came. Raises UserError where the other storage holds none. Collective.
    """
    own, source = start_of(storage_of(instance), claim), instance.spec.checkpoint.resume_from
    if own is not None or source is None:
        return Start.of(read_checkpoint(own)) if own is not None else None
    other = storage_at(instance.context.sources[source], "spec.checkpoint.resumeFrom")
    return Start.of(distributed.ask_first_rank(lambda: resume_from(other, source)), resumes=False)


def let_go(instance: Instance, start: Start | None) -> None:
    """Once everything of it is loaded: a copy of a checkpoint takes 12 bytes for each parameter. Collective."""
    if start is not None and start.resumes:
        distributed.barrier()
        storage_of(instance).let_go(start.folder)


def make_checkpoints(instance: Instance, claim: Claim) -> Checkpoints:
    """The checkpoints of this attempt, under its term."""
    storage = storage_of(instance)
    return Checkpoints(
        checkpoints_of(storage),
        claim.term,
        instance.spec.checkpoint.keep,
        prune=lambda _term, keep: prune_checkpoints(storage, claim.term, keep),
        fence=lambda: check_term(storage, claim.term),
    )
