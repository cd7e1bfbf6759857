"""A keyed work queue: one pass at a time for a key, requests in between coalesced, errors backed off."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 120.0

log = logging.getLogger(__name__)


@dataclass
class _Entry:
    """What is known of a key that runs or waits. A key at rest has none."""

    running: asyncio.Task[None] | None = None
    again: bool = False
    """Asked for while it ran: the pass may have looked before the change, so another follows."""
    timer: asyncio.TimerHandle | None = None
    failures: int = 0


class WorkQueue(Generic[Key]):
    """Calls `work(key)` soon after `add(key)`, and again after the delay it returned (None: only when asked).

    At most `concurrency` passes run at once, never two for one key. A pass that raises is repeated with exponential
    back-off, its error goes to `report` (default: the log, with its traceback); asking for the key again runs it at
    once, since what it failed on may be what has changed.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[timedelta | None]],
        concurrency: int = 32,
        report: Callable[[Key, Exception], None] | None = None,
    ) -> None:
        self._work = work
        self._slots = asyncio.Semaphore(concurrency)
        self._report = report or _log
        self._entries: dict[Key, _Entry] = {}
        self._closed = False

    def add(self, key: Key) -> None:
        """Ask for a pass; any number of requests before it starts are one."""
        if self._closed:
            return
        entry = self._entries.setdefault(key, _Entry())
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        if entry.running is not None:
            entry.again = True
        else:
            entry.running = asyncio.create_task(self._run(key, entry), name=f"pass {key}")

    @property
    def depth(self) -> int:
        """Keys that run or wait for a slot."""
        return sum(entry.running is not None for entry in self._entries.values())

    async def close(self, grace_seconds: float) -> None:
        """Start no more passes and let those that run end; after the grace they are cancelled."""
        self._closed = True
        for entry in self._entries.values():
            if entry.timer is not None:
                entry.timer.cancel()
        running = [entry.running for entry in self._entries.values() if entry.running is not None]
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=grace_seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, key: Key, entry: _Entry) -> None:
        async with self._slots:
            entry.again = False  # whatever was asked for until now, this pass sees
            delay = None if self._closed else await self._pass(key, entry)
        entry.running = None
        if self._closed:
            return
        if entry.again:
            self.add(key)
        elif delay is not None:
            entry.timer = asyncio.get_running_loop().call_later(delay.total_seconds(), self.add, key)
        else:
            del self._entries[key]

    async def _pass(self, key: Key, entry: _Entry) -> timedelta | None:
        try:
            delay = await self._work(key)
        except Exception as error:  # whatever it is, the other keys go on and this one is tried again
            entry.failures += 1
            seconds = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (entry.failures - 1))
            self._report(key, error)
            return timedelta(seconds=seconds)
        entry.failures = 0
        return delay


def _log(key: object, error: Exception) -> None:
    log.error("pass failed", extra={"key": str(key)}, exc_info=error)
