"""A proxy before the real apiserver that spoils chosen requests: refuses them, loses their answers, ends watches."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from tests.rig.cluster import Rig
from tests.rig.control_plane import ADMIN, kubeconfig

Answer = web.StreamResponse


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
    hits: int = 0
    on: bool = True

    def fits(self, request: web.Request) -> bool:
        return self.on and request.method == self.method and re.search(self.path, request.path_qs) is not None


@dataclass
class FaultProxy:
    """Serves from a thread of its own, so that tests may wait in plain Python."""

    rig: Rig
    port: int = 0
    _faults: list[Fault] = field(default_factory=list)

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
        fault = next((fault for fault in self._faults if fault.fits(request)), None)
        if fault is None:
            return await self._pass_on(request)
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
                return await self._pass_on(request)
        except TimeoutError:
            return _reset(request)

    async def _send(self, request: web.Request) -> aiohttp.ClientResponse:
        dropped = ("host", "content-length", "transfer-encoding", "connection")
        headers = {name: value for name, value in request.headers.items() if name.lower() not in dropped}
        url = self.rig.layout.api_address + request.path_qs
        timeout = aiohttp.ClientTimeout(total=None)
        body = await request.read()
        return await self._session.request(request.method, url, headers=headers, data=body or None, timeout=timeout)

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
