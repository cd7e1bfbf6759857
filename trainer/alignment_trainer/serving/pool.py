"""Drives servers that come and go: every piece of work is done once, by whichever server answers."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic

import httpx

from alignment_trainer.process.errors import WireError, describe, first_cause
from alignment_trainer.serving.peers import Peers
from alignment_trainer.serving.server import NotNow, Server, ServerLost, Timing
from alignment_trainer.serving.work import Item, ItemLimits, Task, WorkQueue

log = logging.getLogger(__name__)

_TICK = 0.02


class PhaseStalled(RuntimeError):
    """No server has answered for as long as the phase allows."""


@dataclass(frozen=True)
class ServerGroup:
    """The servers of a role. peers: who may be asked now. on_count: called with how many answer, when that changes."""

    role: str
    peers: Peers
    token: str
    on_count: Callable[[int], None] = lambda count: None


@dataclass(frozen=True)
class PoolOptions:
    """Seconds unless said otherwise. in_flight: requests held by one server, so that it never waits for the next.

    deadline: of one request. stalled_after: without any answer, after which the phase is given up; None waits for ever.
    leave_within: what a stop grants to requests in flight.
    """

    in_flight: int = 4
    deadline: float = 900.0
    stalled_after: float | None = None
    leave_within: float = 20.0
    items: ItemLimits = field(default_factory=ItemLimits)
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True)
class PoolResult(Generic[Item]):
    """finished: whether every item was done or dropped. reissued, dropped: as WorkQueue counts them."""

    finished: bool
    reissued: int
    dropped: dict[Item, str]


@dataclass(frozen=True)
class ServerPool(Generic[Item]):
    """A task, and the servers that do it."""

    task: Task[Item]
    servers: ServerGroup
    options: PoolOptions = field(default_factory=PoolOptions)

    def run(self, items: Sequence[Item], stop: Callable[[], bool]) -> PoolResult[Item]:
        """Does every item; with no server alive it waits for one. Not finished where `stop` ended it before.

        Asked to stop, it hands out nothing more and waits `leave_within` seconds for what is in flight.
        Raises RequestRefused where a server calls a request wrong, AnswerRefused where answers are, PhaseStalled after
        `stalled_after` without answers.
        """
        queue = WorkQueue(items, self.task.name, self.options.items)
        asyncio.run(self._run(queue, stop))
        return PoolResult(queue.left == 0, queue.reissued, queue.dropped)

    async def _run(self, queue: WorkQueue[Item], stop: Callable[[], bool]) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        timeout = httpx.Timeout(self.options.deadline, connect=self.options.timing.probe_timeout)
        headers = {"Authorization": f"Bearer {self.servers.token}"}
        async with httpx.AsyncClient(limits=limits, timeout=timeout, headers=headers, trust_env=False) as http:
            await _Dispatcher(self, queue, http).run(stop)


class _Dispatcher(Generic[Item]):
    """One run of a pool: a task for each server that is known, which hands it one item after the other."""

    def __init__(self, pool: ServerPool[Item], queue: WorkQueue[Item], http: httpx.AsyncClient) -> None:
        self._task, self._servers, self._options = pool.task, pool.servers, pool.options
        self._queue, self._http = queue, http
        self._using: dict[str, asyncio.Task[None]] = {}
        self._listed, self._answering = frozenset[str](), set[str]()
        self._answers, self._answered_at = Counter[str](), time.monotonic()
        self._leaving = False

    async def run(self, stop: Callable[[], bool]) -> None:
        resolver = asyncio.create_task(self._keep_resolving())
        try:
            while self._queue.left and not stop():
                await asyncio.sleep(_TICK)
                _raise_first([resolver, *self._using.values()])
                self._raise_if_stalled()
            self._leaving = True
            await self._drain()
        finally:
            await _cancel([resolver, *self._using.values()])

    def _raise_if_stalled(self) -> None:
        limit, silent = self._options.stalled_after, time.monotonic() - self._answered_at
        if limit is not None and silent > limit:
            asked = ", ".join(sorted(self._listed)) or "none was found"
            raise PhaseStalled(
                f"{self._task.phase}: no answer for {silent:.0f} s, {self._queue.left} requests are left; servers: "
                f"{asked}; look at their pods' status and logs"
            )

    async def _drain(self) -> None:
        end = time.monotonic() + self._options.leave_within
        while self._queue.held and time.monotonic() < end:  # noqa: ASYNC110 (lanes finish on other tasks)
            await asyncio.sleep(_TICK)

    async def _keep_resolving(self) -> None:
        """Starts a task for every address that has none; a task ends itself once its address is gone and silent."""
        while True:
            self._listed = await self._servers.peers()
            for url in self._listed:
                if url not in self._using or _has_ended(self._using[url]):
                    server = Server(url, self._http, self._options.deadline, self._options.timing)
                    self._using[url] = asyncio.create_task(self._use(server))
            await asyncio.sleep(self._options.timing.resolve_every)

    async def _use(self, server: Server) -> None:
        """Keeps one server busy for as long as it lives; asks again soon while it is not ready."""
        timing, problem, losses = self._options.timing, "", 0
        while self._queue.left and (server.url in self._listed or not problem):
            before, answers = problem, self._answers[server.url]
            try:
                await server.probe()
                self._set_answering(server.url, True)
                problem = ""
                await self._keep_busy(server)
            except* ServerLost as errors:
                problem = str(first_cause(errors))
            lost_at_work = server.url in self._answering and answers == self._answers[server.url]
            losses = losses + 1 if lost_at_work else 0
            self._set_answering(server.url, False)
            if problem != before:
                log.warning("%s", problem, extra={"peer": server.url})
            await asyncio.sleep(min(timing.max_ask_again, timing.ask_again * 2**losses) * random.uniform(0.5, 1.0))

    async def _keep_busy(self, server: Server) -> None:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(server.watch())
            lanes = [group.create_task(self._lane(server)) for _ in range(self._options.in_flight)]
            await asyncio.wait(lanes)
            watch.cancel()

    async def _lane(self, server: Server) -> None:
        """One request after the other; what is not answered goes back to the front of the queue."""
        while self._queue.left and not self._leaving:
            item = self._queue.take()
            if item is None:
                await asyncio.sleep(_TICK)
                continue
            try:
                await self._ask(server, item)
            except NotNow as reason:
                self._queue.put_back(item)
                log.warning("%s", reason, extra={"peer": server.url})
                await asyncio.sleep(self._options.timing.ask_again)
            except BaseException as error:
                if self._leaving:
                    self._queue.put_back(item)
                else:
                    self._queue.lose(item, describe(error))
                raise

    async def _ask(self, server: Server, item: Item) -> None:
        name = self._task.name(item)
        answer = await server.post(self._task.path, self._task.encode(item), f"{self._task.phase} of {name}")
        try:
            self._task.accept(item, answer)
        except WireError as error:
            problem = f"{server.url}: {name}: {error}"
            self._queue.count_wrong_answer(item, problem)
            raise ServerLost(problem) from error
        self._queue.finish()
        self._answers[server.url] += 1
        self._answered_at = time.monotonic()

    def _set_answering(self, url: str, answering: bool) -> None:
        before = len(self._answering)
        (self._answering.add if answering else self._answering.discard)(url)
        if len(self._answering) != before and self._queue.left:
            self._servers.on_count(len(self._answering))


def _has_ended(task: asyncio.Task[None]) -> bool:
    """By itself. One that failed stays until its error is raised."""
    return task.done() and not task.cancelled() and task.exception() is None


def _raise_first(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Raises what ended a task; RequestRefused comes wrapped in the groups of its lanes."""
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise first_cause(error)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
