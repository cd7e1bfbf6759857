"""A proxy before the real apiserver that spoils chosen requests: refuses them, loses their answers, ends watches.

It numbers the writes and the events of watches that pass, so that a single fault can strike at each of them in turn.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import aiohttp
from aiohttp import web
from tests.rig.cluster import Rig
from tests.rig.control_plane import ADMIN, kubeconfig

Answer = web.StreamResponse
BESIDE = re.compile("/(leases|events)")
"""Not numbered: they go on in lanes of their own, at any moment of a job's life."""
VIEW_LAG_SECONDS = 2.0
"""For so long nothing new reaches an operator that began with a view of the past."""


@dataclass
class Fault:
    """What happens to the requests that it fits, while it is on."""

    method: str
    path: str
    """A regular expression, found anywhere in path and query."""
    code: int = 0
    """Refused with this code, and never passed on."""
    loses_answer: bool = False
    """Passed on, and the connection is reset where the answer would come."""
    cut_after: float | None = None
    """A watch is reset after so many seconds."""
    delay: float = 0.0
    """Seconds before it is passed on."""
    every: int = 1
    """Only each so many-th request that fits is spoiled, the first one included; the others are passed on."""
    seen: int = 0
    hits: int = 0
    on: bool = True

    def fits(self, request: web.Request) -> bool:
        fits = self.on and re.fullmatch(self.method, request.method) and re.search(self.path, request.path_qs)
        self.seen += bool(fits)
        return bool(fits) and (self.seen - 1) % self.every == 0


@dataclass(frozen=True)
class Write:
    """A write that has been passed on, and what the apiserver said."""

    method: str
    path: str
    name: str
    code: int

    @property
    def kind(self) -> str:
        """Its collection; of a job it is the status that is written."""
        return next((word for word in self.path.split("/")[::-1] if word in COLLECTIONS), self.path)


COLLECTIONS = frozenset(
    (
        "pods",
        "services",
        "configmaps",
        "secrets",
        "persistentvolumeclaims",
        "networkpolicies",
        "podgroups",
        "alignmentjobs",
    )
)


@dataclass
class Strike:
    """One fault at one moment: the number-th write, or the number-th event of all watches, counted from 1.

    die: the write is passed on, and nobody hears or says anything any more until `revive`. lag: the same, and what is
    listed first after it is how things stood before the write. lose: the write is passed on and its answer is lost.
    drop: the watch ends before the event, and cannot go on from where it was: what it would have told is never told.
    """

    what: Literal["die", "lag", "lose", "drop"]
    number: int
    struck: threading.Event = field(default_factory=threading.Event)


@dataclass
class FaultProxy:
    """Serves from a thread of its own, so that tests may wait in plain Python."""

    rig: Rig
    port: int = 0
    strike: Strike | None = None
    writes: list[Write] = field(default_factory=list)
    events: int = 0
    _begun: int = 0
    silent: bool = False
    _faults: list[Fault] = field(default_factory=list)
    _lists: dict[tuple[str, str], web.Request] = field(default_factory=dict)
    _views: dict[tuple[str, str], web.Response] = field(default_factory=dict)
    _expired: set[str] = field(default_factory=set)

    def revive(self) -> None:
        """Whoever was struck dead is gone; the next one is served."""
        self.silent = False

    def fault(self, method: str, path: str, **what: Any) -> Fault:
        """A fault from now on, until its `on` is made False."""
        made = Fault(method, path, **what)
        self._faults.append(made)
        return made

    def kubeconfig(self, folder: Path) -> Path:
        """A client's configuration that leads here, with the rights of the rig's admin."""
        text = kubeconfig(self.rig.layout, self.rig.credentials.token(ADMIN))
        text["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{self.port}"}
        file = folder / "kubeconfig-through-proxy"
        file.write_text(json.dumps(text))
        return file

    async def serve(self, started: threading.Event, stop: asyncio.Event) -> None:
        app = web.Application(client_max_size=16 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        connector = aiohttp.TCPConnector(ssl=False, limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.port = runner.addresses[0][1]
            started.set()
            await stop.wait()
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> Answer:
        if self.silent:
            return _reset(request)
        fault = next((fault for fault in self._faults if fault.fits(request)), None)
        if fault is None:
            return await self._forward(request)
        fault.hits += 1
        if fault.code:
            status = {"kind": "Status", "message": "a fault of the test", "reason": "Fault", "code": fault.code}
            return web.json_response(status, status=fault.code)
        await asyncio.sleep(fault.delay)
        if fault.loses_answer:
            await (await self._send(request)).read()
            return _reset(request)
        try:
            async with asyncio.timeout(fault.cut_after):
                return await self._forward(request)
        except TimeoutError:
            return _reset(request)

    async def _send(self, request: web.Request) -> aiohttp.ClientResponse:
        dropped = ("accept-encoding", "host", "content-length", "transfer-encoding", "connection")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
        headers["Accept-Encoding"] = "identity"
        url = self.rig.layout.api_address + request.path_qs
        timeout = aiohttp.ClientTimeout(total=None)
        body = await request.read()
        return await self._session.request(request.method, url, headers=headers, data=body or None, timeout=timeout)

    async def _forward(self, request: web.Request) -> Answer:
        if request.method != "GET":
            return await (self._pass_on if BESIDE.search(request.path) else self._write)(request)
        if "watch" in request.query:
            return await self._watch(request)
        if request.path.rpartition("/")[2] in {"pods", "alignmentjobs"}:
            return await self._list(request)
        return await self._pass_on(request)

    async def _write(self, request: web.Request) -> Answer:
        self._begun += 1
        strike = self.strike
        strikes = strike is not None and strike.what != "drop" and strike.number == self._begun
        if strike is not None and strikes and strike.what == "lag":
            self._views = {key: await self._whole(listed) for key, listed in self._lists.items()}
        answer = await self._whole(request)
        self.writes.append(Write(request.method, request.path, _name(request, answer), answer.status))
        if strike is None or not strikes:
            return answer
        self.silent = strike.what != "lose"
        strike.struck.set()
        return _reset(request)

    async def _list(self, request: web.Request) -> Answer:
        key = (request.path, request.headers.get("Accept", ""))
        self._lists[key] = request
        return self._views.pop(key, None) or await self._whole(request)

    async def _watch(self, request: web.Request) -> Answer:
        """Line by line; a strike ends it before its event, and the next watch of the same is told it is too old."""
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        if request.path in self._expired:
            self._expired.remove(request.path)
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            return web.json_response({"type": "ERROR", "object": status})
        strike = self.strike
        if strike is not None and strike.what == "lag" and strike.struck.is_set():
            await asyncio.sleep(VIEW_LAG_SECONDS)
        async with await self._send(request) as far:
            if far.status >= 400:
                return web.Response(status=far.status, body=await far.read(), content_type=far.content_type)
            await answer.prepare(request)
            async for line in _lines(far.content):
                self.events += b'"type":"BOOKMARK"' not in line[:40]
                if strike is not None and strike.what == "drop" and self._drops(strike):
                    self._expired.add(request.path)
                    return _reset(request)
                await answer.write(line)
            await answer.write_eof()
        return answer

    def _drops(self, strike: Strike) -> bool:
        if strike.struck.is_set() or self.events < strike.number:
            return False
        strike.struck.set()
        return True

    async def _whole(self, request: web.Request) -> web.Response:
        async with await self._send(request) as far:
            made = web.Response(status=far.status, body=await far.read(), content_type=far.content_type)
            if "Retry-After" in far.headers:
                made.headers["Retry-After"] = far.headers["Retry-After"]
            return made

    async def _pass_on(self, request: web.Request) -> Answer:
        async with await self._send(request) as far:
            answer = web.StreamResponse(status=far.status, headers={"Content-Type": far.content_type})
            if "Retry-After" in far.headers:
                answer.headers["Retry-After"] = far.headers["Retry-After"]
            await answer.prepare(request)
            async for chunk in far.content.iter_any():
                await answer.write(chunk)
            await answer.write_eof()
            return answer


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"


def _name(request: web.Request, answer: web.Response) -> str:
    """Of what was written: a create has it in the answer alone."""
    last = request.path.rpartition("/")[2]
    if request.method != "POST" or not isinstance(answer.body, bytes):
        return last
    return str(json.loads(answer.body).get("metadata", {}).get("name", last))


def _reset(request: web.Request) -> Answer:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


@contextmanager
def fault_proxy(rig: Rig) -> Iterator[FaultProxy]:
    proxy, started = FaultProxy(rig), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(proxy.serve(started, stop),), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()
