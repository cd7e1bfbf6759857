"""Files that are whole or not there, and their checksums."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

_CHUNK_BYTES = 8 * 1024**2
"""That are hashed and written at once."""


def make_folder(folder: Path) -> Path:
    """The folder; it and those that it lies in are made where they are missing, and last from the return on."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        flush(one.parent)
    return folder


def create_exclusively(path: Path, text: str) -> bool:
    """Creates the file with its whole text, unless it is there: a link is as exclusive as O_EXCL, and never half."""
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)
    return True


def write_hashed(path: Path, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
    """Writes a file beside `path`, hashed in the same pass, flushes it to the disk, then gives it its name.

    Returns the bytes written and their SHA-256.
    """
    temporary, digest, written = path.with_name(f".{path.name}.{uuid.uuid4().hex}"), hashlib.sha256(), 0
    try:
        with temporary.open("wb") as file:
            for chunk in _chunks(pieces):
                digest.update(chunk)
                written += file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    flush(path.parent)
    return written, digest.hexdigest()


def _chunks(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


def flush(path: Path) -> None:
    """fsync of a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(paths: list[Path], folder: Path, digest: Callable[[Path], str] = sha256) -> str:
    """SHA-256 over names (relative to `folder`) and contents of files, in order of name. digest: SHA-256 of a file."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(folder)}\0{digest(path)}\n".encode())
    return total.hexdigest()
