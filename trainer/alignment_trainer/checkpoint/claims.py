"""The job's storage: room, claims of terms, and the checkpoint that a new attempt starts from (docs/adr/0003)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from alignment_api.contract.base import Contract
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import ModelReport
from alignment_api.derived.adapters import trained_parameters
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.reward_stage import REWARD_FOLDER
from alignment_trainer.checkpoint.checkpoint import (
    MANIFEST,
    Checkpoint,
    DamagedCheckpointError,
    checkpoint_name,
    list_checkpoints,
    newest_verified,
    read_checkpoint,
    remove_checkpoint,
    step_name,
)
from alignment_trainer.data.storage import Storage
from alignment_trainer.process.errors import UserError, describe

CHECKPOINT_BYTES = 12
"""Per parameter: fp32 weight and AdamW's two moments."""
_CLAIM = re.compile(r"\d+\.json")
"""A claim's name."""
_OF_CHECKPOINT = re.compile(r"((?P<term>\d+)/[^/]+)/")
"""How the name of a file of a checkpoint begins."""
EXPORT_BYTES = {"bf16": 2, "fp32": 4}
"""Per parameter of the exported model."""


class DamagedClaimError(ValueError):
    """A claim cannot be read, or is gone: whose storage this is, and what counts in it, is unknown."""


class FencedError(RuntimeError):
    """A newer attempt has claimed the storage: nothing that this one saves counts, or it may not begin at all."""


class CheckpointName(Contract):
    """A checkpoint, by where it stands."""

    term: int
    """Whose writer made it."""
    step: int
    """Steps it holds."""
    updates: int = 0
    """Optimizer steps it holds of the step after those, where a step has several."""


class Claim(Contract):
    """claims/<term:04d>.json: the right to write checkpoints of a term, taken by creating the file."""

    term: int
    """Grows by one with every claim."""
    uid: str
    """Identity of the job that owns the storage."""
    attempt: int
    """The attempt that claims, as the operator counts it."""
    start: CheckpointName | None
    """The checkpoint it starts from; None for the model as it came, or for that of checkpoint.resumeFrom."""
    claimed_at: datetime
    """When."""


def claims_of(storage: Storage) -> Storage:
    """Where the claims lie: a file a term, and nothing else."""
    return storage.within("claims")


def checkpoints_of(storage: Storage) -> Storage:
    """Where the checkpoints lie: by term, and by what they hold."""
    return storage.within("checkpoints")


def read_claims(storage: Storage) -> list[Claim]:
    """Every claim, in order of term. Raises DamagedClaimError, also where one is gone: nothing ever removes one."""
    files, claims = claims_of(storage), []
    for term, name in enumerate(filter(_CLAIM.fullmatch, files.list("")), start=1):
        if name != _claim_name(term):
            raise _gone(storage, term)
        try:
            claims.append(Claim.model_validate_json(files.get(name)))
        except ValidationError as error:
            raise DamagedClaimError(
                f"{storage}/claims/{name}: not a claim: {describe(error)}; restore it from a copy"
            ) from error
    return claims


def _claim_name(term: int) -> str:
    return f"{term:04d}.json"


def _gone(storage: Storage, term: int) -> DamagedClaimError:
    return DamagedClaimError(
        f"{storage}/claims/{_claim_name(term)} is gone; restore it from a copy, and let nothing remove what a job "
        "wrote while it runs, a bucket's lifecycle rules included"
    )


def check_owner(storage: Storage, uid: str) -> None:
    """Raises UserError where another job has claimed this storage."""
    for claim in read_claims(storage):
        if claim.uid != uid:
            raise UserError(
                "ForeignStorage",
                f"spec.storage.source: {storage} belongs to job {claim.uid}, this is job {uid}; give this job storage "
                "of its own, and name the other in spec.checkpoint.resumeFrom to start from its weights",
            )


def claim_term(storage: Storage, uid: str, attempt: int) -> Claim:
    """Takes the next term; of two that try at once each gets its own.

    The claim names the newest verified checkpoint of the lineage. Whatever an older term saves from now on is never
    read. Terms are ordered by attempt, not by arrival: one that comes late (its node was out of reach when it should
    have started) must not fence its successor. Raises UserError for another job's storage, FencedError where a newer
    attempt has claimed, DamagedCheckpointError where there are checkpoints and none is whole.
    """
    check_owner(storage, uid)
    while True:
        claims = read_claims(storage)
        newest = max((claim.attempt for claim in claims), default=0)
        if newest > attempt:
            raise FencedError(
                f"{storage}: attempt {attempt} comes after attempt {newest} has claimed; it ends without a trace"
            )
        start = newest_start(storage, claims)
        if start is not None and not start.place.holds(MANIFEST):
            continue  # while it was proven, the holder of the newest term has saved another and removed it
        claim = Claim(
            term=claims[-1].term + 1 if claims else 1,
            uid=uid,
            attempt=attempt,
            start=CheckpointName(term=start.term, step=start.step, updates=start.updates) if start else None,
            claimed_at=datetime.now(UTC),
        )
        if claims_of(storage).create(_claim_name(claim.term), claim.model_dump_json(indent=1)):
            check_owner(storage, uid)
            return claim


def lineage(claims: list[Claim]) -> list[tuple[int, str | None]]:
    """Terms whose checkpoints count, newest first, each with the name of the last that counts (None: all of them).

    Of an older term only what the next claim of the lineage starts from, and before, is an ancestor.
    """
    by_term = {claim.term: claim for claim in claims}
    counted: list[tuple[int, str | None]] = []
    term, last = (claims[-1].term if claims else None), None
    while term is not None:
        counted.append((term, last))
        start = by_term[term].start
        term, last = (start.term, step_name(start.step, start.updates)) if start else (None, None)
    return counted


def newest_start(storage: Storage, claims: list[Claim]) -> Checkpoint | None:
    """The newest verified checkpoint of the lineage; None where nothing was ever saved in it.

    Raises DamagedCheckpointError where there are some and none is whole, or where what a claim started from is gone;
    DamagedClaimError where every claim is gone.
    """
    checkpoints = checkpoints_of(storage)
    if not claims and _sealed(checkpoints.list("")):
        raise _gone(storage, 1)
    newest = newest_verified(checkpoints.within(name) for name in _lineage_checkpoints(checkpoints, claims))
    if newest is None and any(claim.start for claim in claims):
        raise DamagedCheckpointError(f"{checkpoints}: the checkpoints that the claims started from are gone")
    return newest


def _lineage_checkpoints(checkpoints: Storage, claims: list[Claim]) -> list[str]:
    """The name of every checkpoint that counts, newest first."""
    return [
        f"{term:04d}/{name}"
        for term, last in lineage(claims)
        for name in list_checkpoints(checkpoints.within(f"{term:04d}"))
        if last is None or name <= last
    ]


def check_term(storage: Storage, term: int) -> list[Claim]:
    """Every claim. Raises FencedError for who does not hold the newest."""
    claims = read_claims(storage)
    if len(claims) < term:
        raise _gone(storage, len(claims) + 1)
    if claims[-1].term != term:
        raise FencedError(f"term {term} is over: attempt {claims[-1].attempt} has claimed term {claims[-1].term}")
    return claims


def prune_checkpoints(storage: Storage, term: int, keep: int) -> None:
    """Leaves the newest `keep` checkpoints of the lineage, for the holder of the newest term.

    Raises FencedError for the holder of an older one, who removes nothing: its successor may be reading them.
    """
    claims, checkpoints = check_term(storage, term), checkpoints_of(storage)
    kept = _lineage_checkpoints(checkpoints, claims)[:keep]
    for name in sorted(_sealed(checkpoints.list("")).difference(kept)):
        remove_checkpoint(checkpoints.within(name))
    remove_unfinished(storage, term)


def remove_unfinished(storage: Storage, term: int) -> None:
    """Removes what holders of older terms began to save and did not finish: nobody reads it, and it takes room.

    For the holder of the newest term. One of an older term may still write there; what it leaves goes with the next.
    """
    checkpoints = checkpoints_of(storage)
    files = checkpoints.begun()
    begun = {found[1] for name in files if (found := _OF_CHECKPOINT.match(name)) and int(found["term"]) < term}
    for name in begun - _sealed(files):
        with suppress(OSError):
            checkpoints.delete(f"{name}/")


def _sealed(files: Iterable[str]) -> set[str]:
    """The names of checkpoints, by those of all files."""
    return {name.removesuffix(f"/{MANIFEST}") for name in files if name.endswith(f"/{MANIFEST}")}


def start_of(storage: Storage, claim: Claim) -> Storage | None:
    """Where the checkpoint lies that a claim starts from."""
    if claim.start is None:
        return None
    return checkpoints_of(storage).within(checkpoint_name(claim.start.term, claim.start.step, claim.start.updates))


def resume_from(storage: Storage, source: str) -> Checkpoint:
    """The newest verified checkpoint of another job's storage, only read. Raises UserError where there is none."""
    checkpoint = newest_start(storage, read_claims(storage))
    if checkpoint is None:
        raise _no_checkpoint(storage, source)
    return checkpoint


def newest_unverified(storage: Storage, source: str) -> Checkpoint:
    """The same by its manifest, parts unread: for a look at headers. Raises UserError where there is none."""
    checkpoints = checkpoints_of(storage)
    names = _lineage_checkpoints(checkpoints, read_claims(storage))
    if not names:
        raise _no_checkpoint(storage, source)
    return read_checkpoint(checkpoints.within(names[0]))


def _no_checkpoint(storage: Storage, source: str) -> UserError:
    return UserError(
        "NoCheckpoint", f"spec.checkpoint.resumeFrom: `{source}` ({storage}) holds no checkpoint; leave it out"
    )


def needed_bytes(model: ModelReport, spec: AlignmentJobSpec, in_storage: int = 0) -> tuple[int, int]:
    """Bytes that checkpoints (those kept and the one being written) and the exported model take.

    A critic's state is part of a checkpoint. in_storage: bytes that other stages leave beside the checkpoints.
    """
    trained = trained_parameters(spec.training, Decoder.reported(model)) * (2 if spec.algorithm.ppo else 1)
    checkpoints = (spec.checkpoint.keep + 1) * CHECKPOINT_BYTES * trained
    adapters = EXPORT_BYTES["fp32"] * trained if spec.training.lora is not None else 0
    return checkpoints + in_storage, EXPORT_BYTES[spec.training.precision] * model.parameters + adapters


def check_room(storage: Storage, output: Storage, needed: tuple[int, int]) -> None:
    """Raises UserError where checkpoints and the exported model will not fit; what is there already counts as free."""
    checkpoints, export = needed
    ours, theirs = storage.disk, output.disk
    shared = ours is not None and theirs is not None and ours.stat().st_dev == theirs.stat().st_dev
    if ours is not None:
        free = shutil.disk_usage(ours).free + sum(_size(ours / name) for name in ("checkpoints", REWARD_FOLDER))
        _require("spec.storage.source", ours, checkpoints + export * shared, free)
    if theirs is not None and not shared:
        _require("spec.output.destination", theirs, export, shutil.disk_usage(theirs).free)


def _require(field: str, folder: Path, needed: int, free: int) -> None:
    if free < needed:
        raise UserError(
            "StorageFull",
            f"{field}: {folder} has {free:,} bytes free, this job needs {needed:,}; take a larger volume, or lower "
            "spec.checkpoint.keep",
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
