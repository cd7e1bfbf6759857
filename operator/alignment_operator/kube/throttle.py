"""Own throttling: the apiserver is shared, and nothing below us limits our requests."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

SHARE = 30
"""Requests of one owner that may wait for their turn at once, a tenth of a second's worth of work; the rest stands
behind them, and not before those of others."""


class TokenBucket:
    """Lets `rate` requests a second through, and `burst` at once after a quiet time.

    First come, first served, but for owners who ask for more than their share at once.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._shares: defaultdict[Hashable, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(SHARE))
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._updated: float | None = None

    async def take(self, owner: Hashable = None) -> None:
        """Wait for one token."""
        async with self._shares[owner]:
            wait = self.reserve(asyncio.get_running_loop().time())
            if wait > 0:
                await asyncio.sleep(wait)

    def reserve(self, now: float) -> float:
        """Take one token at `now` (seconds, any monotonic clock); the seconds to wait before it may be used."""
        if self._updated is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
        self._updated = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)


@dataclass(frozen=True)
class Lane:
    """What one kind of work may ask of the apiserver. What is full in one lane delays nothing in another."""

    rate: float
    """Requests a second."""
    burst: int
    """Requests at once after a quiet time."""
    try_seconds: float
    """Until one try counts as unanswered."""
    retry_seconds: float
    """How long a request that is not answered is sent again; 0: whoever asked does that."""


LANES = {
    # A thousand running jobs are looked at every five seconds: 200 a second.
    "work": Lane(rate=300.0, burst=600, try_seconds=15.0, retry_seconds=45.0),
    # Several tries within the lease's own deadline of 10 s, at its own pace.
    "lease": Lane(rate=10.0, burst=20, try_seconds=4.0, retry_seconds=0.0),
    # A page of 500 pods is some 5 MB.
    "mirrors": Lane(rate=30.0, burst=60, try_seconds=30.0, retry_seconds=45.0),
    # One that is not taken, perhaps for its namespace alone, holds up those behind it.
    "events": Lane(rate=30.0, burst=100, try_seconds=5.0, retry_seconds=10.0),
}
"""Purpose -> its lane."""


def backoff_seconds(failures: int, first: float, most: float) -> float:
    """The pause after so many failures in a row: `first`, doubled up to `most`."""
    return min(most, first * 2.0 ** min(failures - 1, 30))


def jittered(seconds: float) -> float:
    """Half of it to all of it: not every client comes back in the same instant."""
    return seconds * random.uniform(0.5, 1.0)
