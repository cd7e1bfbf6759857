"""Checkpoints: folders of parts whose manifest, written last, makes them count.

<storage>/checkpoints/<term:04d>/<step:08d>/{parts..., manifest.json}. A folder without a manifest is no checkpoint. One
whose parts differ from its manifest is damaged, and the one before is used; nothing ever starts afresh because a part
is gone.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from alignment_trainer.checkpoint.storage import Folder
from alignment_trainer.data.drafts import Draft
from alignment_trainer.data.files import flush, sha256, write_text_atomically
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


Write = Callable[[], list[Part]]
"""What is left to do once a snapshot is taken: writes this rank's parts, with no collective of the training thread."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a manifest: the state after `step` steps, written by the attempt that holds `term`.

    updates: optimizer steps done of the step after that, where a step has several (PPO, GRPO).
    """

    folder: Path
    term: int
    step: int
    parts: tuple[Part, ...]
    updates: int = 0


def checkpoint_folder(checkpoints: Path, term: int, step: int, updates: int = 0) -> Path:
    return checkpoints / f"{term:04d}" / checkpoint_name(step, updates)


def checkpoint_name(step: int, updates: int = 0) -> str:
    """Names in the order of what they hold: 00000012, 00000012-0003 (3 updates of step 13 done), 00000013."""
    return f"{step:08d}-{updates:04d}" if updates else f"{step:08d}"


def start_checkpoint(folder: Path) -> None:
    """An empty folder for the parts; what an interrupted attempt at the same checkpoint left there goes."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def write_parts(folder: Path, drafts: Iterable[Draft]) -> list[Part]:
    """Writes, hashes in the same pass, and flushes to the disk."""
    return [Part(draft.name, *Folder(folder).put(draft.name, draft.pieces())) for draft in drafts]


def write_checkpoint(folder: Path, term: int, step: int, parts: Iterable[Part], updates: int = 0) -> Checkpoint:
    """Seals it by the manifest: from here on the folder is a checkpoint, whatever happens to the machine."""
    checkpoint = Checkpoint(folder, term, step, tuple(sorted(parts, key=lambda part: part.name)), updates)
    manifest = {"term": term, "step": step, "updates": updates, "parts": [asdict(part) for part in checkpoint.parts]}
    write_text_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))
    for directory in (folder.parent, folder.parent.parent):
        flush(directory)
    return checkpoint


def read_checkpoint(folder: Path) -> Checkpoint:
    """As its manifest describes it, parts unread. Raises DamagedCheckpointError for a broken manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        parts = tuple(Part(**part) for part in manifest["parts"])
        return Checkpoint(folder, manifest["term"], manifest["step"], parts, manifest.get("updates", 0))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{folder}: the manifest cannot be read: {describe(error)}") from error


def verify(folder: Path) -> Checkpoint:
    """The checkpoint, once every part was found to have its size and checksum. Raises DamagedCheckpointError.

    Parts are read side by side, one a core. Sizes are looked at before a byte is read.
    """
    checkpoint = read_checkpoint(folder)
    for part in checkpoint.parts:
        _check_size(folder, part)
    with ThreadPoolExecutor(available_cores(), thread_name_prefix="verify") as readers:
        list(readers.map(lambda part: _check_content(folder, part), checkpoint.parts))
    return checkpoint


def _check_size(folder: Path, part: Part) -> None:
    path = folder / part.name
    if not path.is_file():
        raise DamagedCheckpointError(f"{folder}: the part {part.name} is missing")
    if path.stat().st_size != part.bytes:
        raise DamagedCheckpointError(f"{path}: {path.stat().st_size} bytes, the manifest says {part.bytes}")


def _check_content(folder: Path, part: Part) -> None:
    if sha256(folder / part.name) != part.sha256:
        raise DamagedCheckpointError(
            f"{folder / part.name}: its checksum is not the manifest's; the disk or a copy damaged it"
        )


def list_checkpoints(term_folder: Path) -> list[Path]:
    """Folders of one term that hold a manifest, newest first."""
    return sorted((path.parent for path in term_folder.glob(f"*/{MANIFEST}")), reverse=True)


def newest_verified(folders: Iterable[Path]) -> Checkpoint | None:
    """The first of `folders` that verifies; each damaged one before it is named in the log.

    None where there is no checkpoint at all. Raises DamagedCheckpointError where there are some and none is whole: that
    is for a person to look at, not a reason to begin again.
    """
    damage: DamagedCheckpointError | None = None
    for folder in folders:
        try:
            return verify(folder)
        except DamagedCheckpointError as error:
            damage = error
            log.warning("damaged checkpoint, falling back to the one before: %s", error)
    if damage is not None:
        raise DamagedCheckpointError(f"every checkpoint is damaged; the oldest: {damage}")
    return None


def prune(term_folder: Path, keep: int) -> None:
    """Removes all but the newest `keep` checkpoints of a term; the manifest goes first, so none is left half."""
    for folder in list_checkpoints(term_folder)[keep:]:
        (folder / MANIFEST).unlink()
        shutil.rmtree(folder)
