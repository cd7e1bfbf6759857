"""A keyed work queue: one pass at a time for a key, requests in between coalesced, errors backed off, turns taken."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from alignment_operator.kube.throttle import backoff_seconds

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

    At most `concurrency` passes run at once, never two for one key. Where more are asked for, the owners of the keys
    take turns: a thousand of one owner delay another's one by a pass. A pass that raises is repeated with exponential
    back-off, its error goes to `report` (default: the log, with its traceback); asking for the key again runs it at
    once, since what it failed on may be what has changed.
    """

    def __init__(
        self,
        work: Callable[[Key], Awaitable[timedelta | None]],
        concurrency: int = 32,
        report: Callable[[Key, Exception], None] | None = None,
        owner: Callable[[Key], Hashable] = lambda key: None,
        held: bool = False,
    ) -> None:
        """held: no pass starts before `release`."""
        self._work = work
        self._concurrency = concurrency
        self._report = report or _log
        self._owner = owner
        self._held = held
        self._entries: dict[Key, _Entry] = {}
        self._waiting: dict[Hashable, dict[Key, None]] = {}
        """Owner -> its keys that wait for a slot; both in the order in which it is their turn."""
        self._running = 0
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
            self._waiting.setdefault(self._owner(key), {})[key] = None
            self._start()

    def release(self) -> None:
        """Start what was asked for while it was held."""
        self._held = False
        self._start()

    @property
    def running(self) -> int:
        """Passes that run."""
        return self._running

    @property
    def depth(self) -> int:
        """Keys that run or wait for a slot."""
        return self._running + sum(map(len, self._waiting.values()))

    async def close(self, grace_seconds: float) -> None:
        """Start no more passes and let those that run end; after the grace they are cancelled."""
        running = self._stop()
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=grace_seconds)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def cancel(self) -> None:
        """Start no more passes and cancel at once those that run: they may not act any more."""
        for task in self._stop():
            task.cancel()

    def _stop(self) -> list[asyncio.Task[None]]:
        self._closed = True
        self._waiting.clear()
        for entry in self._entries.values():
            if entry.timer is not None:
                entry.timer.cancel()
        return [entry.running for entry in self._entries.values() if entry.running is not None]

    def _start(self) -> None:
        while self._waiting and self._running < self._concurrency and not self._held:
            owner, keys = next(iter(self._waiting.items()))
            del self._waiting[owner]
            key = next(iter(keys))
            del keys[key]
            if keys:
                self._waiting[owner] = keys  # at the end: now it is another's turn
            entry = self._entries[key]
            self._running += 1
            entry.running = asyncio.create_task(self._run(key, entry), name=f"pass {key}")

    async def _run(self, key: Key, entry: _Entry) -> None:
        entry.again = False  # whatever was asked for until now, this pass sees
        delay = None if self._closed else await self._pass(key, entry)
        entry.running = None
        self._running -= 1
        if self._closed:
            return
        if entry.again:
            self.add(key)
        elif delay is not None:
            entry.timer = asyncio.get_running_loop().call_later(delay.total_seconds(), self.add, key)
        else:
            del self._entries[key]
        self._start()

    async def _pass(self, key: Key, entry: _Entry) -> timedelta | None:
        try:
            delay = await self._work(key)
        except Exception as error:  # whatever it is, the other keys go on and this one is tried again
            entry.failures += 1
            self._report(key, error)
            return timedelta(seconds=backoff_seconds(entry.failures, FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS))
        entry.failures = 0
        return delay


def _log(key: object, error: Exception) -> None:
    log.error("pass failed", extra={"key": str(key)}, exc_info=error)
