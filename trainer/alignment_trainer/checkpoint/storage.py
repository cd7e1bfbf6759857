"""What claims, checkpoints and results need of a storage, who has it, and the proof of it that `prepare` asks for."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from alignment_api.contract.sources import parse_source
from alignment_trainer.data.files import create_exclusively, write_hashed
from alignment_trainer.object_store.store import ObjectStore
from alignment_trainer.process.errors import UserError, describe

_WRITERS = 4
"""That want the same name at one moment, in the proof."""


class Storage(Protocol):
    """Files by name. A name may have folders, parted by `/`; a prefix is that of such a folder, with its `/`, or empty.

    Every method raises OSError where the storage fails. As text it is where it lies, for people.
    """

    @property
    def needs(self) -> str:
        """What has the exclusive create, in words: what to give where it is missing."""

    def check_writable(self, field: str) -> None:
        """Raises UserError, by the field that names the storage, where nothing can be written."""

    def create(self, name: str, text: str) -> bool:
        """Creates a file with its whole text unless one of that name is there. Of several at once one is told True."""

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
        """Writes a file, whatever was there; it lasts from the return on. Its bytes and their SHA-256."""

    def get(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""

    def list(self, prefix: str) -> list[str]:
        """The names below a prefix, in order; whatever was created or put before is among them."""

    def delete(self, prefix: str) -> None:
        """Removes every file below a prefix; nothing where there is none."""

    def holds(self, name: str) -> bool:
        """Whether a file or folder of that name is there."""

    def parents(self) -> Iterator[tuple[Storage, str]]:
        """Every folder that this one lies in, the nearest first, with the name of what it lies in there."""


@dataclass(frozen=True)
class Folder:
    """A storage below a folder, of a disk or of a volume that is mounted by several nodes."""

    root: Path
    needs = "a volume whose file system has hard links"

    def __str__(self) -> str:
        return str(self.root)

    def check_writable(self, field: str) -> None:
        probe = self.root / f".writable-{uuid.uuid4().hex}"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UserError(
                "StorageNotWritable", f"{field}: {self}: {error.strerror}; give a volume that pods may write"
            ) from error

    def create(self, name: str, text: str) -> bool:
        return create_exclusively(self._path(name), text)

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
        return write_hashed(self._path(name), pieces)

    def get(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def list(self, prefix: str) -> list[str]:
        return sorted(
            path.relative_to(self.root).as_posix() for path in (self.root / prefix).rglob("*") if path.is_file()
        )

    def delete(self, prefix: str) -> None:
        if (self.root / prefix).exists():
            shutil.rmtree(self.root / prefix)

    def holds(self, name: str) -> bool:
        return os.path.lexists(self.root / name)

    def parents(self) -> Iterator[tuple[Folder, str]]:
        folder = self.root.resolve()
        for parent in folder.parents:
            yield Folder(parent), folder.relative_to(parent).parts[0]

    def _path(self, name: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def storage_at(place: str, field: str) -> Storage:
    """What a Context calls so: a path here, or s3://bucket/prefix. field: of the manifest, that names it."""
    return ObjectStore.of(place, field) if parse_source(place).scheme == "s3" else Folder(Path(place))


def prove_claims(storage: Storage, field: str) -> None:
    """Raises UserError, by the field that names the storage, where two attempts could take one claim.

    Several writers create the same file at one moment: one must win, with its own text, and a list must show the file.
    """
    prefix = f".proof-{uuid.uuid4().hex}/"
    try:
        problem = _problem(storage, prefix)
        storage.delete(prefix)
    except OSError as error:
        problem = f"a file cannot be created exclusively: {describe(error)}"
    if problem is not None:
        raise UserError(
            "StorageNotExclusive",
            f"{field}: {problem}; two attempts could write here at once, so nothing is begun. Give {storage.needs}",
        )


def _problem(storage: Storage, prefix: str) -> str | None:
    name, start = f"{prefix}claim", threading.Barrier(_WRITERS)

    def create(text: str) -> bool:
        start.wait()
        return storage.create(name, text)

    texts = [f"writer {number}" for number in range(_WRITERS)]
    with ThreadPoolExecutor(_WRITERS) as writers:
        winners = [text for text, won in zip(texts, writers.map(create, texts), strict=True) if won]
    if len(winners) != 1:
        return f"{len(winners)} of {_WRITERS} writers have created the same file"
    if storage.list(prefix) != [name]:
        return "a file that was created is not listed"
    if storage.get(name) != winners[0].encode() or storage.create(name, "late"):
        return "a file that was created is replaced by another writer's"
    return None
