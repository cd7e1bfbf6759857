"""Places in a fixed order, in each of which one thread at a time is at work."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turns:
    """Threads pass from place to place; who waits for the next one keeps its own, so that none is overtaken.

    Nobody waits for ever: who waits for a later place holds an earlier one, and who goes back leaves its own first.
    """

    def __init__(self, places: int) -> None:
        self._locks = [threading.Lock() for _ in range(places)]
        self._mine = threading.local()

    @contextmanager
    def entering(self, place: int) -> Iterator[None]:
        """Waits for the place; the one before is left when the block ends."""
        before = self._place
        if place == before:
            yield
            return
        if before is not None and place < before:
            self.leave()
        self._locks[place].acquire()
        try:
            yield
        finally:
            self.leave()
            self._mine.place = place

    def leave(self) -> None:
        """Leaves this thread's place, if it has one."""
        if (place := self._place) is not None:
            self._mine.place = None
            self._locks[place].release()

    @property
    def _place(self) -> int | None:
        return getattr(self._mine, "place", None)
