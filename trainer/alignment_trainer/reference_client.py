"""Drives reference servers that come and go: every shard is computed once, by whichever server answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray

from alignment_trainer.data.packing import PromptGroup
from alignment_trainer.data.reference import Float32, Shard
from alignment_trainer.local_scorer import sum_completions
from alignment_trainer.servers.wire import LogprobsRequest, WireError, decode_answer, encode_request

log = logging.getLogger(__name__)

LOGPROBS_PATH = "/v1/logprobs"
_REFUSED = (400, 413)
_TICK = 0.05


class ReferenceRefused(RuntimeError):
    """A server understood the request and will never answer it: a bug, or servers of another release."""


class PeerError(Exception):
    """A server that does not answer now. Its work goes to another one."""


@dataclass(frozen=True)
class ClientOptions:
    """Seconds unless said otherwise. in_flight: requests held by one server, so that it never waits for the next."""

    in_flight: int = 2
    resolve_every: float = 5.0
    probe_every: float = 2.0
    probe_timeout: float = 10.0
    probes_missed: int = 3
    deadline: float = 900.0
    backoff: float = 0.5
    max_backoff: float = 15.0
    leave_within: float = 20.0


@dataclass
class ReferenceClient:
    """One run over a list of shards. The callbacks are called from the thread that calls `run`.

    urls: base URLs; a host may stand for several addresses, and is resolved again and again.
    request: the rows of a shard. accept: takes a shard's sums (rows, 2).
    servers: told how many servers answer, when that changes.
    """

    urls: Sequence[str]
    token: str
    request: Callable[[Shard], LogprobsRequest]
    accept: Callable[[Shard, Float32], None]
    servers: Callable[[int], None] = lambda count: None
    options: ClientOptions = field(default_factory=ClientOptions)
    _pending: deque[Shard] = field(default_factory=deque)
    _left: int = 0
    _in_flight: int = 0
    _leaving: bool = False
    _serving: set[str] = field(default_factory=set)
    _listed: set[str] = field(default_factory=set)

    def run(self, shards: Sequence[Shard], stop: Callable[[], bool]) -> bool:
        """Computes every shard; with no server alive it waits for one. False where `stop` ended it before.

        Asked to stop, it hands out nothing more and waits `leave_within` seconds for what is in flight.
        Raises ReferenceRefused where a server calls a request wrong.
        """
        self._pending, self._left, self._leaving = deque(shards), len(shards), False
        asyncio.run(self._run(stop))
        return self._left == 0

    async def _run(self, stop: Callable[[], bool]) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        timeout = httpx.Timeout(self.options.deadline, connect=self.options.probe_timeout)
        headers = {"Authorization": f"Bearer {self.token}"}
        async with httpx.AsyncClient(limits=limits, timeout=timeout, headers=headers, trust_env=False) as http:
            peers: dict[str, asyncio.Task[None]] = {}
            resolver = asyncio.create_task(self._keep_resolving(http, peers))
            try:
                while self._left and not stop():
                    await asyncio.sleep(_TICK)
                    _raise_first([resolver, *peers.values()])
                self._leaving = True
                await self._drain()
            finally:
                await _cancel([resolver, *peers.values()])

    async def _drain(self) -> None:
        end = time.monotonic() + self.options.leave_within
        while self._in_flight and time.monotonic() < end:  # noqa: ASYNC110 (lanes finish on other tasks)
            await asyncio.sleep(_TICK)

    async def _keep_resolving(self, http: httpx.AsyncClient, peers: dict[str, asyncio.Task[None]]) -> None:
        """Starts a task for every address that has none; a task ends itself once its address is gone and silent."""
        while True:
            self._listed = await self._addresses()
            for address in self._listed:
                if address not in peers or peers[address].done():
                    peers[address] = asyncio.create_task(self._use(http, address))
            await asyncio.sleep(self.options.resolve_every)

    async def _addresses(self) -> set[str]:
        """Base URLs by address. A name that does not resolve has no servers now."""
        found: set[str] = set()
        for url in self.urls:
            parts = urlsplit(url)
            port = parts.port or 80
            with contextlib.suppress(socket.gaierror):
                infos = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
                hosts = (str(info[4][0]) for info in infos)
                found |= {f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}" for host in hosts}
        return found

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
            shard = self._pending.popleft()
            self._in_flight += 1
            try:
                sums = await self._ask(http, peer, shard)
            except BaseException:
                self._pending.appendleft(shard)
                raise
            else:
                self.accept(shard, sums)
                self._left -= 1
            finally:
                self._in_flight -= 1

    async def _ask(self, http: httpx.AsyncClient, peer: str, shard: Shard) -> Float32:
        request = self.request(shard)
        groups = [group for batch in request.batches for group in batch]
        try:
            async with asyncio.timeout(self.options.deadline):
                answer = await http.post(f"{peer}{LOGPROBS_PATH}", content=encode_request(request))
        except TimeoutError as error:
            raise PeerError(f"{peer}: no log-probs of {shard.name} within {self.options.deadline:g} s") from error
        except httpx.HTTPError as error:
            raise PeerError(f"{peer}: lost while it computed {shard.name}: {_describe(error)}") from error
        if answer.status_code in _REFUSED:
            raise ReferenceRefused(f"{peer} refused {shard.name} ({answer.status_code}): {answer.text[:500]}")
        if answer.status_code != httpx.codes.OK:
            raise PeerError(f"{peer}: {shard.name}: {answer.status_code}: {answer.text[:500]}")
        try:
            return _sums(groups, decode_answer(answer.content, sum(len(c) for g in groups for c in g.completions)))
        except WireError as error:
            raise PeerError(f"{peer}: {shard.name}: {error}") from error

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


def _sums(groups: Sequence[PromptGroup], logprobs: NDArray[np.float32]) -> Float32:
    """(pairs, 2) sums of the flat log-probs of all completion tokens."""
    ends = np.cumsum([sum(map(len, group.completions)) for group in groups])
    parts = np.split(logprobs, ends[:-1])
    return np.stack([sum_completions(group, part) for group, part in zip(groups, parts, strict=True)])


def _raise_first(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Raises what ended a task; ReferenceRefused comes wrapped in the groups of its lanes."""
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
