"""One server of a pool: is it ready, does it still live, what does it answer."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import httpx

from alignment_trainer.process.errors import describe

_REFUSED = (400, 413)


class RequestRefused(RuntimeError):
    """A server understood the request and will never answer it: a bug, or servers of another release."""


class ServerLost(Exception):
    """A server that does not answer now. Its work goes to another one."""


class NotNow(Exception):
    """A healthy server that cannot answer this request (409). The work goes back to the queue."""


@dataclass(frozen=True)
class Timing:
    """Seconds unless said otherwise.

    resolve_every: between two looks at who may be asked. ask_again: before a server that was not ready, or was lost,
    is asked again. max_ask_again: where it is lost again and again without an answer between.
    watch_every: between two probes of a server at work; probe_timeout: of each; probes_missed: in a row, after which it
    counts as lost.
    """

    resolve_every: float = 1.0
    ask_again: float = 1.0
    max_ask_again: float = 15.0
    watch_every: float = 2.0
    probe_timeout: float = 10.0
    probes_missed: int = 3


@dataclass(frozen=True)
class Server:
    """url: its address. deadline: of one request, seconds."""

    url: str
    http: httpx.AsyncClient
    deadline: float
    timing: Timing

    async def probe(self) -> None:
        """Raises ServerLost where it is not ready."""
        try:
            answer = await self.http.get(f"{self.url}/healthz", timeout=self.timing.probe_timeout)
        except httpx.HTTPError as error:
            raise ServerLost(f"{self.url}: does not answer: {describe(error)}") from error
        if answer.status_code != httpx.codes.OK:
            raise ServerLost(f"{self.url}: not ready: {answer.text[:200].strip()}")

    async def watch(self) -> None:
        """For as long as it lives. A lost node closes no connection: one that misses several probes is lost, too.

        Raises ServerLost.
        """
        missed = 0
        while missed < self.timing.probes_missed:
            await asyncio.sleep(self.timing.watch_every)
            try:
                await self.probe()
                missed = 0
            except ServerLost:
                missed += 1
        raise ServerLost(f"{self.url}: missed {missed} probes of /healthz, {self.timing.probe_timeout:g} s each")

    async def post(self, path: str, body: bytes, what: str) -> bytes:
        """The answer. what: is asked, in words. Raises ServerLost, NotNow, RequestRefused."""
        try:
            async with asyncio.timeout(self.deadline):
                answer = await self.http.post(f"{self.url}{path}", content=body)
        except TimeoutError as error:
            raise ServerLost(f"{self.url}: no answer to {what} within {self.deadline:g} s") from error
        except httpx.HTTPError as error:
            raise ServerLost(f"{self.url}: lost while it computed {what}: {describe(error)}") from error
        if answer.status_code == httpx.codes.OK:
            return answer.content
        problem = f"{self.url}: {what}: {answer.status_code}: {answer.text[:500]}"
        if answer.status_code in _REFUSED:
            raise RequestRefused(f"{self.url} refused {what} ({answer.status_code}): {answer.text[:500]}")
        raise NotNow(problem) if answer.status_code == httpx.codes.CONFLICT else ServerLost(problem)
