"""Moments at which a process is killed, told by what it asks of files: the same moment again and again."""

from __future__ import annotations

import os
import resource
import signal
import sys
from dataclasses import dataclass
from typing import Any

_REMOVALS = {"os.remove", "os.rmdir"}
_CALLS = _REMOVALS | {"open", "os.rename", "os.link", "os.mkdir"}
"""As Python's audit events name them."""


@dataclass(frozen=True)
class Moment:
    """Just before a call on files, counted from 0; or, where that opens a file, once so many bytes are written.

    bytes: of that file or, where it stays smaller, of the next one that grows so large.
    """

    call: int
    bytes: int | None = None


class FileCalls:
    """What this process asks of the files below a folder.

    sizes: of each call so far, the bytes of the file that it opens to write; 0 for every other call.
    """

    def __init__(self, folder: str, moment: Moment | None) -> None:
        self._folder, self._moment = f"{folder}/", moment
        self.sizes: list[int] = []
        self._written: dict[str, int] = {}

    def watch(self) -> None:
        """From now on to the end of the process. By the main thread."""
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; left alone it ends a process as SIGKILL does
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CALLS and self._concerns(event, arguments):
            if self._moment is not None and self._moment.call == len(self.sizes):
                _die(self._moment)
            self._count(event, arguments)

    def _concerns(self, event: str, arguments: tuple[Any, ...]) -> bool:
        """A folder is removed by names within an open folder, which no other does."""
        return str(arguments[0]).startswith(self._folder) or (event in _REMOVALS and arguments[-1] >= 0)

    def _count(self, event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0])
        if event == "open" and arguments[2] & os.O_ACCMODE != os.O_RDONLY:
            self._written[path] = len(self.sizes)
        if event in ("os.rename", "os.link") and path in self._written:
            self.sizes[self._written.pop(path)] = os.stat(path).st_size  # noqa: PTH116 (pathlib's has an event, too)
        self.sizes.append(0)


def _die(moment: Moment) -> None:
    """Now, or by the kernel in the middle of a write that goes beyond."""
    if moment.bytes is None:
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (moment.bytes, resource.RLIM_INFINITY))
