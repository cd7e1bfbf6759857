"""Whose a folder is: the first job that writes in a storage or output marks it, and every other is refused (ADR 30)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from pydantic import ValidationError

from alignment_api.contract.base import Contract
from alignment_api.contract.context import Context
from alignment_api.derived.reward_stage import REWARD_FOLDER
from alignment_trainer.checkpoint.claims import check_owner, read_claims
from alignment_trainer.checkpoint.proof import prove_claims
from alignment_trainer.data.storage import Storage, storage_at
from alignment_trainer.process.errors import UserError


class Owner(Contract):
    """A mark: the job that writes in the folder."""

    job: str
    """Its name, for people."""
    uid: str
    """Its identity."""
    marked_at: datetime
    """When."""


@dataclass(frozen=True)
class Kind:
    """A kind of folder that a job writes in. Only these names in it are the job's, and only by its mark."""

    field: str
    mark: str
    names: tuple[str, ...]
    instead: str
    """What to name in place of a folder that is another's."""


STORAGE = Kind(
    "spec.storage.source",
    ".alignment-storage.json",
    ("before.json", "checkpoints", "claims", "prepared", REWARD_FOLDER, "rollouts", "tensorboard"),
    "name a folder of its own; checkpoint.resumeFrom starts from another job's weights",
)
OUTPUT = Kind(
    "spec.output.destination",
    ".alignment-output.json",
    ("evaluation.json", "model", ".model.old", ".model.partial"),
    "name a folder of its own",
)


def take_folders(context: Context) -> None:
    """Marks storage and output as this job's, before anything is written there. Raises UserError where one is not.

    Of two jobs that try at once the mark is one's: creating it is exclusive.
    """
    folders = _folders(context)
    for kind, folder in folders.items():
        folder.check_writable(kind.field)
        prove_claims(folder, kind.field)
    check_owner(folders[STORAGE], context.uid)
    begun = bool(read_claims(folders[STORAGE]))  # by a release that left no marks
    for kind, folder in folders.items():
        if not begun and _owner(folder, kind.mark) is None:
            _check_free(kind, folder)
        owner = Owner(job=context.job, uid=context.uid, marked_at=datetime.now(UTC))
        folder.create(kind.mark, owner.model_dump_json(indent=1))
    check_folders(context)


def check_folders(context: Context) -> None:
    """Raises UserError where storage or output is another job's, or lies within what another job writes.

    A folder without a mark passes: a release that left none has prepared the job.
    """
    folders = _folders(context)
    for kind, folder in folders.items():
        owner = _owner(folder, kind.mark)
        if owner is not None and owner.uid != context.uid:
            raise _taken(kind, f"{folder} belongs to job {owner.job} ({owner.uid}), this is job {context.uid}")
        _check_around(kind, folder, context.uid)
    check_owner(folders[STORAGE], context.uid)


def _folders(context: Context) -> dict[Kind, Storage]:
    places = {STORAGE: context.storage, OUTPUT: context.output}
    return {kind: storage_at(place, kind.field) for kind, place in places.items() if place is not None}


def _check_free(kind: Kind, folder: Storage) -> None:
    found = [name for name in kind.names if folder.holds(name)]
    if found:
        there = ", ".join(f"`{name}`" for name in found)
        raise _taken(kind, f"{folder} holds {there}, which this job did not write", "move that away, or ")


def _check_around(kind: Kind, folder: Storage, uid: str) -> None:
    """A folder below another job's `model` or `checkpoints` would go with it."""
    for parent, within in folder.parents():
        for other in (STORAGE, OUTPUT):
            owner = _owner(parent, other.mark) if within in other.names else None
            if owner is not None and owner.uid != uid:
                raise _taken(kind, f"{folder} lies within `{within}` of job {owner.job} ({owner.uid})")


def _owner(folder: Storage, mark: str) -> Owner | None:
    """None where there is no mark. A mark that cannot be read is another's."""
    try:
        return Owner.model_validate_json(folder.get(mark), extra="ignore")
    except FileNotFoundError:
        return None
    except ValidationError:
        return Owner(job="unknown", uid=f"{mark} cannot be read", marked_at=datetime.now(UTC))


def _taken(kind: Kind, found: str, before: str = "") -> UserError:
    reason = "ForeignStorage" if kind is STORAGE else "ForeignOutput"
    return UserError(reason, f"{kind.field}: {found}; {before}{kind.instead}")
