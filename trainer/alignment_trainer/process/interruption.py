"""SIGTERM as a question that work asks between two pieces, never as an exception in the middle of one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_TICK_SECONDS = 0.1


class Interruption:
    """Whether this process was asked to go. Calling it answers, so that it can be handed on as a function."""

    def __init__(self) -> None:
        self._requested = False

    def __call__(self) -> bool:
        return self._requested

    def request(self) -> None:
        """Asks this process to go. Only sets a flag: a signal handler may not take locks."""
        self._requested = True

    def sleep(self, seconds: float) -> None:
        """Waits, at most until somebody asks this process to go."""
        end = time.monotonic() + seconds
        while not self._requested and (left := end - time.monotonic()) > 0:
            time.sleep(min(_TICK_SECONDS, left))

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT request the interruption; the former handlers come back afterwards."""

        def handle(_number: int, _frame: FrameType | None) -> None:
            self.request()

        former = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
