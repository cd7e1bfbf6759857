"""Where a job's result goes: a folder or a bucket, in which a model is whole or not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from alignment_api.contract.sources import parse_source
from alignment_trainer.data.files import flush
from alignment_trainer.data.storage import Folder
from alignment_trainer.object_store.download import download
from alignment_trainer.object_store.store import ObjectStore
from alignment_trainer.process.instance import EXPORT_FOLDER

REPORT = "evaluation.json"
SEAL = "config.json"
"""No loader takes a folder without it for a model: in a bucket it goes first and comes last."""

_PIECE_BYTES = 8 * 1024**2


class Output(Protocol):
    """The trained model and its report. As text it is where it lies, for people."""

    def replace_model(self, write: Callable[[Path], object]) -> None:
        """Lets `write` fill an empty folder; what is in it becomes the model, in place of one that was there before.

        Whoever is killed in between leaves no model that lacks a part.
        """

    def model(self) -> AbstractContextManager[Path]:
        """The model as a folder here, as long as the context is open. Raises FileNotFoundError where there is none."""

    def put_report(self, text: str) -> None:
        """Writes evaluation.json, beside the model."""


def output_at(place: str) -> Output:
    """What a Context calls so: a path here, or s3://bucket/prefix."""
    if parse_source(place).scheme == "s3":
        return BucketOutput(ObjectStore.of(place, "spec.output.destination"))
    return FolderOutput(Path(place))


@dataclass(frozen=True)
class FolderOutput:
    """The model is written beside its folder, flushed to the disk and renamed at the end, so that a folder of that name
    is always whole, whatever happens to the machine."""

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def replace_model(self, write: Callable[[Path], object]) -> None:
        temporary = self.root / f".{EXPORT_FOLDER}.partial"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for path in (*temporary.rglob("*"), temporary):
            flush(path)
        _replace(temporary, self.root / EXPORT_FOLDER)
        flush(self.root)

    @contextmanager
    def model(self) -> Iterator[Path]:
        folder = self.root / EXPORT_FOLDER
        if not (folder / SEAL).is_file():
            raise _no_model(self)
        yield folder

    def put_report(self, text: str) -> None:
        Folder(self.root).put(REPORT, [text.encode()])


@dataclass(frozen=True)
class BucketOutput:
    """The model is written to a folder of this machine and sent file by file, its config.json last."""

    store: ObjectStore

    def __str__(self) -> str:
        return str(self.store)

    def replace_model(self, write: Callable[[Path], object]) -> None:
        with TemporaryDirectory(prefix="export-") as folder:
            write(Path(folder))
            files = sorted(_files_below(Path(folder)), key=lambda name: name == SEAL)
            self.store.remove(f"{EXPORT_FOLDER}/{SEAL}")
            self.store.delete(f"{EXPORT_FOLDER}/")
            for name in files:
                self.store.put(f"{EXPORT_FOLDER}/{name}", _pieces(Path(folder) / name))

    @contextmanager
    def model(self) -> Iterator[Path]:
        prefix = f"{EXPORT_FOLDER}/"
        objects = list(self.store.found(prefix))
        if not any(found.name == prefix + SEAL for found in objects):
            raise _no_model(self)
        with TemporaryDirectory(prefix="exported-") as folder:
            download(self.store, objects, Path(folder))
            yield Path(folder) / EXPORT_FOLDER

    def put_report(self, text: str) -> None:
        self.store.put(REPORT, [text.encode()])


def _no_model(output: Output) -> FileNotFoundError:
    return FileNotFoundError(f"{output}: no exported model; stage `train` has not finished here")


def _replace(temporary: Path, folder: Path) -> None:
    """Two renames: between them the old model stands under another name, never half of one."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            yield piece
