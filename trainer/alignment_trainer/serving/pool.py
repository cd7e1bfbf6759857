"""Drives servers that come and go: every piece of work is done once, by whichever server answers."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import httpx

from alignment_trainer.data.group_arrays import WireError
from alignment_trainer.serving.peers import Peers

log = logging.getLogger(__name__)

_REFUSED = (400, 413)
_TICK = 0.02
Item = TypeVar("Item", bound=Hashable)


class RequestRefused(RuntimeError):
    """A server understood the request and will never answer it: a bug, or servers of another release."""


class PhaseStalled(RuntimeError):
    """No server has answered for as long as the phase allows."""


class PeerError(Exception):
    """A server that does not answer now. Its work goes to another one."""


class NotNow(Exception):
    """A healthy server that cannot answer this request (409). The work goes back to the queue."""


@dataclass(frozen=True)
class PoolOptions:
    """Seconds unless said otherwise. in_flight: requests held by one server, so that it never waits for the next.

    deadline: of one request. stalled_after: without any answer, after which the phase is given up; None waits for ever.
    leave_within: what a stop grants to requests in flight. tries: servers that may be lost over one item before it is
    dropped; None for any number.
    """

    in_flight: int = 2
    resolve_every: float = 5.0
    probe_every: float = 2.0
    probe_timeout: float = 10.0
    probes_missed: int = 3
    deadline: float = 900.0
    stalled_after: float | None = None
    backoff: float = 0.5
    max_backoff: float = 15.0
    leave_within: float = 20.0
    tries: int | None = None


@dataclass(frozen=True)
class Task(Generic[Item]):
    """What the servers of a role are asked. The callbacks are called from the thread that calls `run`.

    phase: in words, for messages: `log-probs`, `completions by weights 17`. path: of the request, a POST.
    encode: an item's body. accept: takes the answer to an item; raises WireError for one that is not what it should be.
    name: an item in words.
    """

    phase: str
    path: str
    encode: Callable[[Item], bytes]
    accept: Callable[[Item, bytes], None]
    name: Callable[[Item], str] = str


@dataclass
class ServerPool(Generic[Item]):
    """One run over a list of items.

    peers: who may be asked now; looked at again every few seconds. servers: told how many answer, when that changes.
    reissued: requests so far whose server was lost, so that another one got them. dropped: items that were given up,
    with the reason.
    """

    task: Task[Item]
    peers: Peers
    token: str
    servers: Callable[[int], None] = lambda count: None
    options: PoolOptions = field(default_factory=PoolOptions)
    reissued: int = 0
    dropped: dict[Item, str] = field(default_factory=dict)
    _tries: Counter[Item] = field(default_factory=Counter)
    _pending: deque[Item] = field(default_factory=deque)
    _left: int = 0
    _in_flight: int = 0
    _leaving: bool = False
    _answered_at: float = 0.0
    _serving: set[str] = field(default_factory=set)
    _listed: frozenset[str] = frozenset()

    def run(self, items: Sequence[Item], stop: Callable[[], bool]) -> bool:
        """Does every item; with no server alive it waits for one. False where `stop` ended it before.

        Asked to stop, it hands out nothing more and waits `leave_within` seconds for what is in flight.
        Raises RequestRefused where a server calls a request wrong, PhaseStalled after `stalled_after` without answers.
        """
        self._pending, self._left, self._leaving = deque(items), len(items), False
        self._serving.clear()
        self._answered_at = time.monotonic()
        asyncio.run(self._run(stop))
        return self._left == 0

    async def _run(self, stop: Callable[[], bool]) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        timeout = httpx.Timeout(self.options.deadline, connect=self.options.probe_timeout)
        headers = {"Authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(limits=limits, timeout=timeout, headers=headers, trust_env=False) as http:
            using: dict[str, asyncio.Task[None]] = {}
            resolver = asyncio.create_task(self._keep_resolving(http, using))
            try:
                while self._left and not stop():
                    await asyncio.sleep(_TICK)
                    _raise_first([resolver, *using.values()])
                    self._raise_if_stalled()
                self._leaving = True
                await self._drain()
            finally:
                await _cancel([resolver, *using.values()])

    def _raise_if_stalled(self) -> None:
        limit, silent = self.options.stalled_after, time.monotonic() - self._answered_at
        if limit is not None and silent > limit:
            asked = ", ".join(sorted(self._listed)) or "none was found"
            raise PhaseStalled(
                f"{self.task.phase}: no answer for {silent:.0f} s, {self._left} requests are left; servers: {asked}; "
                "look at their pods' status and logs"
            )

    async def _drain(self) -> None:
        end = time.monotonic() + self.options.leave_within
        while self._in_flight and time.monotonic() < end:  # noqa: ASYNC110 (lanes finish on other tasks)
            await asyncio.sleep(_TICK)

    async def _keep_resolving(self, http: httpx.AsyncClient, using: dict[str, asyncio.Task[None]]) -> None:
        """Starts a task for every address that has none; a task ends itself once its address is gone and silent."""
        while True:
            self._listed = await self.peers()
            for address in self._listed:
                if address not in using or using[address].done():
                    using[address] = asyncio.create_task(self._use(http, address))
            await asyncio.sleep(self.options.resolve_every)

    async def _use(self, http: httpx.AsyncClient, peer: str) -> None:
        """Keeps one server busy for as long as it lives; backs off while it does not answer."""
        failures = 0
        while self._left and (peer in self._listed or not failures):
            try:
                await self._probe(http, peer)
                self._note(peer, serving=True)
                failures = 0
                await self._keep_busy(http, peer)
            except* PeerError as errors:
                log.warning("%s", errors.exceptions[0], extra={"peer": peer})
                failures += 1
            self._note(peer, serving=False)
            pause = min(self.options.max_backoff, self.options.backoff * 2 ** min(failures, 10))
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))

    async def _keep_busy(self, http: httpx.AsyncClient, peer: str) -> None:
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch(http, peer))
            lanes = [group.create_task(self._lane(http, peer)) for _ in range(self.options.in_flight)]
            await asyncio.wait(lanes)
            watch.cancel()

    async def _lane(self, http: httpx.AsyncClient, peer: str) -> None:
        """One request after the other; what is not answered goes back to the front of the queue."""
        while self._left and not self._leaving:
            if not self._pending:
                await asyncio.sleep(_TICK)
                continue
            item = self._pending.popleft()
            self._in_flight += 1
            try:
                await self._do(http, peer, item)
            except NotNow as reason:
                self._pending.appendleft(item)
                log.warning("%s", reason, extra={"peer": peer})
                await asyncio.sleep(self.options.backoff)
            except BaseException as error:
                self._give_back(item, error)
                raise
            finally:
                self._in_flight -= 1

    def _give_back(self, item: Item, error: BaseException) -> None:
        """To the front of the queue, or out of it."""
        self._tries[item] += not self._leaving
        self.reissued += not self._leaving
        if self.options.tries is not None and self._tries[item] >= self.options.tries:
            last = str(error) or type(error).__name__
            self.dropped[item] = f"{self._tries[item]} servers were lost over it; the last: {last}"
            self._left -= 1
            log.warning("%s is dropped: %s", self.task.name(item), self.dropped[item])
        else:
            self._pending.appendleft(item)

    async def _do(self, http: httpx.AsyncClient, peer: str, item: Item) -> None:
        answer = await self._ask(http, peer, item)
        try:
            self.task.accept(item, answer)
        except WireError as error:
            raise PeerError(f"{peer}: {self.task.name(item)}: {error}") from error
        self._left -= 1
        self._answered_at = time.monotonic()

    async def _ask(self, http: httpx.AsyncClient, peer: str, item: Item) -> bytes:
        name, options = self.task.name(item), self.options
        try:
            async with asyncio.timeout(options.deadline):
                answer = await http.post(f"{peer}{self.task.path}", content=self.task.encode(item))
        except TimeoutError as error:
            raise PeerError(f"{peer}: no {self.task.phase} of {name} within {options.deadline:g} s") from error
        except httpx.HTTPError as error:
            raise PeerError(f"{peer}: lost while it computed {name}: {_describe(error)}") from error
        told = f"{peer}: {name}: {answer.status_code}: {answer.text[:500]}" if answer.is_error else ""
        if answer.status_code in _REFUSED:
            raise RequestRefused(f"{peer} refused {name} ({answer.status_code}): {answer.text[:500]}")
        if answer.status_code == httpx.codes.CONFLICT:
            raise NotNow(told)
        if answer.status_code != httpx.codes.OK:
            raise PeerError(told or f"{peer}: {name}: {answer.status_code}")
        return answer.content

    async def _watch(self, http: httpx.AsyncClient, peer: str) -> None:
        """A lost node closes no connection: a server that misses several probes in a row has lost its work."""
        missed = 0
        while missed < self.options.probes_missed:
            await asyncio.sleep(self.options.probe_every)
            try:
                await self._probe(http, peer)
                missed = 0
            except* PeerError:
                missed += 1
        raise PeerError(f"{peer}: missed {missed} probes of /healthz, {self.options.probe_timeout:g} s each")

    async def _probe(self, http: httpx.AsyncClient, peer: str) -> None:
        try:
            answer = await http.get(f"{peer}/healthz", timeout=self.options.probe_timeout)
        except httpx.HTTPError as error:
            raise PeerError(f"{peer}: does not answer: {_describe(error)}") from error
        if answer.status_code != httpx.codes.OK:
            raise PeerError(f"{peer}: not ready: {answer.text[:200].strip()}")

    def _note(self, peer: str, serving: bool) -> None:
        before = len(self._serving)
        (self._serving.add if serving else self._serving.discard)(peer)
        if len(self._serving) != before and self._left:
            self.servers(len(self._serving))


def wait_for_servers(role: str, peers: Peers, stop: Callable[[], bool], patience: float) -> None:
    """Waits until a server of the role answers. Raises PhaseStalled, by the role's field, after `patience` seconds.

    Servers are ready before a trainee may start, so one that cannot be reached then never will be: an address, a
    NetworkPolicy, a token. Better to say so at once than in the middle of the first step.
    """
    asyncio.run(_meet(role, peers, stop, patience))


async def _meet(role: str, peers: Peers, stop: Callable[[], bool], patience: float) -> None:
    end, problems = time.monotonic() + patience, dict[str, str]()
    async with httpx.AsyncClient(timeout=5.0, trust_env=False) as http:
        while not stop():
            for peer in await peers():
                try:
                    answer = await http.get(f"{peer}/healthz")
                except httpx.HTTPError as error:
                    problems[peer] = _describe(error)
                    continue
                if answer.status_code == httpx.codes.OK:
                    return
                problems[peer] = f"{answer.status_code}: {answer.text[:200].strip()}"
            if time.monotonic() > end:
                found = "; ".join(f"{peer}: {why}" for peer, why in sorted(problems.items())) or "no address was found"
                raise PhaseStalled(
                    f"spec.roles.{role}: none of its servers answers within {patience:g} s ({found}); see its pods, "
                    "their Service, and what a NetworkPolicy lets through"
                )
            await asyncio.sleep(0.5)


def _raise_first(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Raises what ended a task; RequestRefused comes wrapped in the groups of its lanes."""
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            raise error


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__
