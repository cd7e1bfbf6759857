"""An end to what is not ours and might have none."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_SECONDS = 1.0
"""After which it is raised once more: what is not ours may have caught it."""


class TookTooLong(BaseException):
    """What ran under a limit was not done in time. No Exception: jinja2 takes any for a sign to try something else."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TookTooLong from the middle of Python code, and of long sums within it.

    In the main thread alone, for that is where signals arrive.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise TookTooLong(f"not done after {seconds:g} s")

    former = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
