"""Writers to a bucket, and a reader, that stand still for a test to kill them; each runs in a process of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from roles import forkserver

from alignment_trainer.checkpoint.output import BucketOutput
from alignment_trainer.object_store import store
from alignment_trainer.object_store.download import Found
from alignment_trainer.object_store.store import ObjectStore

PART = 5 * 1024**2
"""The least that S3 takes for a part that is not the last."""
PATIENCE = 600.0
_told: list[Connection] = []


@contextmanager
def writer_that_stands_still(body: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Inside, it stands still; at the end it is gone by SIGKILL."""
    here, there = forkserver.Pipe(duplex=False)
    process = forkserver.Process(target=_run, args=(body, arguments, dict(os.environ), there), daemon=True)
    process.start()
    there.close()
    try:
        assert here.poll(PATIENCE), "the writer has not come so far"
        assert here.recv() == "here"
        yield
    finally:
        process.kill()
        process.join()


def put_parts(source: str, name: str, parts: int) -> None:
    """Sends so many parts of an object that never ends."""
    store.PART_BYTES = PART

    def pieces() -> Iterator[bytes]:
        for number in range(parts):
            yield bytes([number]) * PART
        _stand_still()

    ObjectStore.of(source, "field").put(name, pieces())


def copy_part(source: str, names: list[str]) -> None:
    """Downloads half of the first of these files, and nothing more."""

    class Halting(ObjectStore):
        def fetch(self, wanted: Found, path: Path) -> None:
            path.write_bytes(self.get(wanted.name)[: wanted.bytes // 2])
            _stand_still()

    Halting.of(source, "field").here(names)


def replace_model(source: str, files: dict[str, str], at: str) -> None:
    """Writes a model of these files and stands still before it sends `at`; `nothing` for before it sends any."""
    halting = HaltingStore.of(source, "field")

    def write(folder: Path) -> None:
        fill(folder, files)
        if at == "nothing":
            _stand_still()

    HaltingStore.at = f"model/{at}"
    BucketOutput(halting).replace_model(write)


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@dataclass(frozen=True)
class HaltingStore(ObjectStore):
    at = ""

    def put(self, name: str, pieces: Any) -> tuple[int, str]:
        if name == self.at:
            _stand_still()
        return super().put(name, pieces)


def _stand_still() -> NoReturn:
    _told[0].send("here")
    while True:
        threading.Event().wait()


def _run(body: Callable[..., None], arguments: tuple[Any, ...], environment: dict[str, str], told: Connection) -> None:
    os.environ.clear()
    os.environ.update(environment)
    _told.append(told)
    body(*arguments)
