"""Where a job keeps what its attempts share, and its results: files by name, in a folder or below a prefix of a
bucket."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from alignment_api.contract.sources import parse_source
from alignment_trainer.data.files import create_exclusively, make_folder, write_hashed
from alignment_trainer.object_store.store import ObjectStore
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.instance import Instance


class Storage(Protocol):
    """Files by name. A name may have folders, parted by `/`; a prefix is that of such a folder, with its `/`, or empty.

    Every method raises OSError where the storage fails. As text it is where it lies, for people.
    """

    @property
    def needs(self) -> str:
        """What has the exclusive create, in words: what to give where it is missing."""

    @property
    def disk(self) -> Path | None:
        """The folder whose disk it fills; None for a bucket, which has no end."""

    def check_writable(self, field: str) -> None:
        """Raises UserError, by the field that names the storage, where nothing can be written."""

    def create(self, name: str, text: str) -> bool:
        """Creates a file with its whole text unless one of that name is there. Of several at once one is told True."""

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
        """Writes a file, whatever was there; it appears whole, and lasts from the return on. Its bytes and their
        SHA-256."""

    def get(self, name: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""

    def list(self, prefix: str) -> list[str]:
        """The names below a prefix, in order; whatever was created or put before is among them."""

    def remove(self, name: str) -> None:
        """Removes one file; nothing where there is none."""

    def delete(self, prefix: str) -> None:
        """Removes every file below a prefix, and what writers that were killed began there; nothing where there is
        none."""

    def holds(self, name: str) -> bool:
        """Whether a file or folder of that name is there."""

    def parents(self) -> Iterator[tuple[Storage, str]]:
        """Every folder that this one lies in, the nearest first, with the name of what it lies in there."""

    def within(self, name: str) -> Storage:
        """The storage below that name, which may be empty yet."""

    def begun(self) -> set[str]:
        """The names of all files, and of what writers have begun and not finished, nor will where they were killed.

        That of a folder that is empty ends with a `/`.
        """

    def here(self, names: Iterable[str]) -> Path:
        """A folder of this machine with those of these files that there are, to be read, not written."""

    def let_go(self, here: Path) -> None:
        """Removes a folder that `here` has made, if it has made it; once nobody on this machine reads there."""

    def workplace(self) -> Path:
        """A folder of this machine for what is on its way into this storage."""


@dataclass(frozen=True)
class Folder:
    """A storage below a folder, of a disk or of a volume that is mounted by several nodes."""

    root: Path
    needs = "a volume whose file system has hard links"

    def __str__(self) -> str:
        return str(self.root)

    @property
    def disk(self) -> Path:
        return self.root

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

    def remove(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def delete(self, prefix: str) -> None:
        if (self.root / prefix).exists():
            shutil.rmtree(self.root / prefix)

    def holds(self, name: str) -> bool:
        return os.path.lexists(self.root / name)

    def parents(self) -> Iterator[tuple[Folder, str]]:
        folder = self.root.resolve()
        for parent in folder.parents:
            yield Folder(parent), folder.relative_to(parent).parts[0]

    def within(self, name: str) -> Folder:
        return Folder(self.root / name)

    def begun(self) -> set[str]:
        empty = (Path(folder) for folder, *within in os.walk(self.root) if not any(within))
        left = {f"{folder.relative_to(self.root).as_posix()}/" for folder in empty if folder != self.root}
        return left.union(self.list(""))  # a file that is not finished stands there, too, under another name

    def here(self, names: Iterable[str]) -> Path:
        return self.root

    def let_go(self, here: Path) -> None:
        """It made none."""

    def workplace(self) -> Path:
        return make_folder(self.root)

    def _path(self, name: str) -> Path:
        path = self.root / name
        make_folder(path.parent)
        return path


def proven(place: Storage, names: Sequence[str], check: Callable[[Path], None]) -> Path:
    """`here`, once `check` has passed it. A copy that it refuses is made anew once: this machine may have damaged it.

    Raises what `check` does for damage, ValueError.
    """
    try:
        return _checked(place, names, check)
    except ValueError:
        if isinstance(place, Folder):
            raise
        return _checked(place, names, check)


def _checked(place: Storage, names: Sequence[str], check: Callable[[Path], None]) -> Path:
    folder = place.here(names)
    try:
        check(folder)
    except ValueError:
        place.let_go(folder)
        raise
    return folder


def storage_at(place: str, field: str) -> Storage:
    """What a Context calls so: a path here, or s3://bucket/prefix. field: of the manifest, that names it."""
    return ObjectStore.of(place, field) if parse_source(place).scheme == "s3" else Folder(Path(place))


def storage_of(instance: Instance) -> Storage:
    """That of the stage: the job's own, or a folder of it."""
    return storage_at(instance.storage, "spec.storage.source")
