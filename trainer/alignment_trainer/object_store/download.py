"""What lies below a prefix of a bucket, as a folder of this machine."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_STREAMS = 8
"""Objects at once: a store gives each connection a share of what it has."""
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


class DiskFull(OSError):
    """This machine's disk has no room for a copy: the next attempt may find another machine."""


@dataclass(frozen=True)
class Found:
    """An object as a list shows it. name: below the prefix that was listed from. etag: changes with its content."""

    name: str
    bytes: int
    etag: str


class Store(Protocol):
    """Where objects are fetched from. As text it is its bucket and prefix."""

    def fetch(self, wanted: Found, path: Path) -> None:
        """Copies an object to a file that is not there yet. Raises OSError where it is not the one that was found."""


def revision_of(objects: Sequence[Found]) -> str:
    """SHA-256 over names, sizes and ETags: what tells these objects from others, by a list alone."""
    digest = hashlib.sha256()
    for found in sorted(objects, key=lambda found: found.name):
        digest.update(f"{found.name}\0{found.bytes}\0{found.etag}\n".encode())
    return digest.hexdigest()


def cached(store: Store, objects: Sequence[Found]) -> Path:
    """The folder that holds the objects; downloaded once, by whoever comes first, below ~/.cache.

    A folder of that name is whole: one that a killed process had begun has another name, and is begun anew.
    """
    folder = _cache() / hashlib.sha256(f"{store}\0{revision_of(objects)}".encode()).hexdigest()
    with _locked(folder.with_suffix(".lock")):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            _download_all(store, objects, partial)
            partial.rename(folder)
    return folder


def _download_all(store: Store, objects: Sequence[Found], folder: Path) -> None:
    """Leaves nothing where it fails."""
    try:
        download(store, objects, folder)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        if error.errno in _FULL:
            size = sum(found.bytes for found in objects)
            raise DiskFull(
                f"{store}: no room for a copy of {size:,} bytes on this machine's own disk, below {folder.parent}; "
                "raise spec.roles.ROLE.ephemeralStorage"
            ) from error
        raise


def download(store: Store, objects: Sequence[Found], folder: Path) -> None:
    """Each object as a file of `folder`, by its name. Raises OSError where one is not what was listed any more."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / found.name for found in objects]
    for path in paths:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise OSError(f"{store}: the object `{path}` has a name that leads out of its folder")
        path.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(_STREAMS) as streams:
        for _ in streams.map(store.fetch, objects, paths):
            pass  # raises what ended it


def remove_cached(folder: Path) -> None:
    """What `cached` made; nothing else."""
    if folder.parent == _cache():
        shutil.rmtree(folder, ignore_errors=True)  # another rank removes it, too


def own_folder(store: Store) -> Path:
    """One for what goes to a prefix, the same in every process of this machine."""
    folder = _cache() / "outgoing" / hashlib.sha256(str(store).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "alignment-operator" / "s3"


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
