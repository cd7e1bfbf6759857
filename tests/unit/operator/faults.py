"""An HTTP server that answers as an apiserver, or a proxy before it, does on a bad day."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

from alignment_operator.kube.client import KubeClient

Manifest = dict[str, Any]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def answering(handler: Handler) -> AsyncIterator[KubeClient]:
    """A client of a server whose every answer comes from `handler`."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    client = KubeClient(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"), in_cluster=False)
    try:
        yield client
    finally:
        await client.close()
        await runner.cleanup()


@asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[asyncio.Future[None]]:
    """Runs beside the block and ends with it."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(look: Callable[[], object], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not look():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.005)


def refused(status: int, reason: str = "") -> web.Response:
    """A refusal in the apiserver's form."""
    return web.json_response({"kind": "Status", "reason": reason, "message": f"code {status}"}, status=status)


def listing(*items: Manifest, version: str = "1") -> web.Response:
    return web.json_response({"items": items, "metadata": {"resourceVersion": version}})


async def stream(request: web.Request, *events: tuple[str, Manifest], then: Awaitable[object] | None = None) -> Any:
    """A watch: these events, then whatever `then` waits for, then its end."""
    answer = web.StreamResponse()
    await answer.prepare(request)
    for kind, item in events:
        await answer.write(json.dumps({"type": kind, "object": item}).encode() + b"\n")
    if then is not None:
        await then
    return answer
