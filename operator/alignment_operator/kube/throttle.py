"""Own throttling: the apiserver is shared, and nothing below us limits our requests."""

from __future__ import annotations

import asyncio


class TokenBucket:
    """Lets `rate` requests a second through, and `burst` at once after a quiet time. First come, first served."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._tokens = float(burst)
        self._updated: float | None = None

    async def take(self) -> None:
        """Wait for one token."""
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
