"""Checkpoints: parts in a storage whose manifest, written last, makes them count.

<storage>/checkpoints/<term:04d>/<step:08d>/{parts..., manifest.json}. Parts without a manifest are no checkpoint. One
whose parts differ from its manifest is damaged, and the one before is used; nothing ever starts afresh because a part
is gone.
"""

import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from alignment_trainer.data.drafts import Draft
from alignment_trainer.data.files import sha256
from alignment_trainer.data.storage import Storage, proven
from alignment_trainer.process.cores import available_cores
from alignment_trainer.process.errors import describe

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class DamagedCheckpointError(ValueError):
    """A checkpoint is not what its manifest says."""


@dataclass(frozen=True)
class Part:
    """One file of a checkpoint."""

    name: str
    bytes: int
    sha256: str


Write = Callable[[Storage], list[Part]]
"""What is left to do once a snapshot is taken: writes this rank's parts, with no collective of the training thread."""


@dataclass(frozen=True)
class Checkpoint:
    """Parts with a manifest: the state after `step` steps, written by the attempt that holds `term`.

    place: where they lie, and nothing else. updates: optimizer steps done of the step after that, where a step has
    several (PPO, GRPO).
    """

    place: Storage
    term: int
    step: int
    parts: tuple[Part, ...]
    updates: int = 0

    @property
    def name(self) -> str:
        """Below the folder of checkpoints."""
        return checkpoint_name(self.term, self.step, self.updates)

    def here(self) -> Path:
        """A folder of this machine with its parts, to be read."""
        return self.place.here(self.names)

    @property
    def names(self) -> list[str]:
        """Of its parts."""
        return [part.name for part in self.parts]


def checkpoint_name(term: int, step: int, updates: int = 0) -> str:
    """Below the folder of checkpoints."""
    return f"{term:04d}/{step_name(step, updates)}"


def step_name(step: int, updates: int = 0) -> str:
    """Names in the order of what they hold: 00000012, 00000012-0003 (3 updates of step 13 done), 00000013."""
    return f"{step:08d}-{updates:04d}" if updates else f"{step:08d}"


def write_parts(place: Storage, drafts: Iterable[Draft]) -> list[Part]:
    """Writes, and hashes in the same pass; they last from the return on."""
    return [Part(draft.name, *place.put(draft.name, draft.pieces())) for draft in drafts]


def write_checkpoint(place: Storage, term: int, step: int, parts: Iterable[Part], updates: int = 0) -> Checkpoint:
    """Seals it by the manifest: from here on it is a checkpoint, whatever happens to the machine."""
    checkpoint = Checkpoint(place, term, step, tuple(sorted(parts, key=lambda part: part.name)), updates)
    manifest = {"term": term, "step": step, "updates": updates, "parts": [asdict(part) for part in checkpoint.parts]}
    place.put(MANIFEST, [json.dumps(manifest, indent=1).encode()])
    return checkpoint


def remove_checkpoint(place: Storage) -> None:
    """The manifest goes first, so that no checkpoint is left half."""
    place.remove(MANIFEST)
    place.delete("")


def read_checkpoint(place: Storage) -> Checkpoint:
    """As its manifest describes it, parts unread.

    Raises DamagedCheckpointError for a manifest that is broken, or that is not of this place: no checksum covers it.
    """
    try:
        fields = json.loads(place.get(MANIFEST))
        parts = tuple(Part(**part) for part in fields.pop("parts"))
        checkpoint = Checkpoint(place=place, parts=parts, **fields)
        name = checkpoint.name
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCheckpointError(f"{place}: the manifest cannot be read: {describe(error)}") from error
    if f"/{place}".endswith(f"/{name}"):
        return checkpoint
    raise DamagedCheckpointError(f"{place}/{MANIFEST}: it is of {name}; the disk or a copy damaged it")


def verify(place: Storage) -> Checkpoint:
    """The checkpoint, once every part was found to have its size and checksum. Raises DamagedCheckpointError.

    Parts are read side by side, one a core. Sizes are looked at before a byte is read.
    """
    checkpoint = read_checkpoint(place)
    proven(place, checkpoint.names, lambda folder: _check(checkpoint, folder))
    return checkpoint


def _check(checkpoint: Checkpoint, folder: Path) -> None:
    for part in checkpoint.parts:
        _check_size(checkpoint, folder / part.name, part)
    with ThreadPoolExecutor(available_cores(), thread_name_prefix="verify") as readers:
        list(readers.map(lambda part: _check_content(checkpoint, folder / part.name, part), checkpoint.parts))


def _check_size(checkpoint: Checkpoint, path: Path, part: Part) -> None:
    if not path.is_file():
        raise DamagedCheckpointError(f"{checkpoint.place}: the part {part.name} is missing")
    if (found := path.stat().st_size) != part.bytes:
        raise DamagedCheckpointError(f"{checkpoint.place}/{part.name}: {found} bytes, the manifest says {part.bytes}")


def _check_content(checkpoint: Checkpoint, path: Path, part: Part) -> None:
    if sha256(path) != part.sha256:
        raise DamagedCheckpointError(
            f"{checkpoint.place}/{part.name}: its checksum is not the manifest's; the disk or a copy damaged it"
        )


def list_checkpoints(term: Storage) -> list[str]:
    """Names of one term's checkpoints, newest first: of what holds a manifest."""
    files = (name.partition("/") for name in term.list(""))
    return sorted((name for name, _, file in files if file == MANIFEST), reverse=True)


def newest_verified(places: Iterable[Storage]) -> Checkpoint | None:
    """The first of `places` that verifies; each damaged one before it is named in the log.

    None where there is no checkpoint at all. Raises DamagedCheckpointError where there are some and none is whole: that
    is for a person to look at, not a reason to begin again.
    """
    damage: DamagedCheckpointError | None = None
    for place in places:
        try:
            return verify(place)
        except DamagedCheckpointError as error:
            damage = error
            log.warning("damaged checkpoint, falling back to the one before: %s", error)
    if damage is not None:
        raise DamagedCheckpointError(f"every checkpoint is damaged; the oldest: {damage}")
    return None


def prune(term: Storage, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints of a term."""
    for name in list_checkpoints(term)[keep:]:
        remove_checkpoint(term.within(name))
