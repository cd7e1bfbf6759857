"""What a job takes from another one's storage (checkpoint.resumeFrom): the weights of its newest checkpoint.

To go on and to start from are two things. A job's own checkpoint is taken up whole; another job's has a position in
other rows, moments of another learning rate and random numbers of another seed, so the new job begins at its own step
0 with nothing but the weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from alignment_trainer.checkpoint.claims import newest_unverified
from alignment_trainer.data.storage import Storage
from alignment_trainer.engines.state import SavedState
from alignment_trainer.model.adapters import PEFT
from alignment_trainer.process.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
FIELD = "spec.checkpoint.resumeFrom"


def check_inheritance(storage: Storage, other: Storage, source: str, wanted: Shapes) -> None:
    """Reads the headers of the other job's newest checkpoint. Raises UserError where this job cannot start from it.

    wanted: the parameters of what this job trains.
    """
    if _are_one(storage, other):
        raise UserError(
            "OwnStorage",
            f"{FIELD}: `{source}` is this job's own storage, from which it goes on by itself; leave it out",
        )
    found = SavedState(newest_unverified(other, source).here()).shapes("weight")
    if any(name.startswith(PEFT) for name in found):
        raise UserError(
            "OtherArchitecture",
            f"{FIELD}: `{source}` is of no use here: it holds adapters of a job with training.lora, and no base; write "
            "its exported model as spec.model, or leave it out",
        )
    if problem := _difference(found, wanted):
        raise UserError(
            "OtherArchitecture",
            f"{FIELD}: `{source}` holds the checkpoint of another model: {problem}. Train the model that it "
            "was trained from, or leave it out",
        )


def _are_one(storage: Storage, other: Storage) -> bool:
    ours, theirs = storage.disk, other.disk
    return ours is not None and theirs is not None and ours.exists() and theirs.exists() and theirs.samefile(ours)


def _difference(found: Shapes, wanted: Shapes) -> str:
    """In words, by the first name of each kind."""
    missing, surplus = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    reshaped = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    told = [f"it lacks {len(missing)} tensors of this model, such as `{missing[0]}`"] if missing else []
    told += [f"has {len(surplus)} that this model does not have, such as `{surplus[0]}`"] if surplus else []
    told += [
        f"`{name}` is {'x'.join(map(str, found[name]))} there, {'x'.join(map(str, wanted[name]))} here"
        for name in reshaped[:1]
    ]
    return ", ".join(told)
