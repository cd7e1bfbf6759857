"""/livez, /healthz and /metrics. Ours and not kopf's, which answers only after start-up: a standby is asked too."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from alignment_operator.kube.telemetry import Telemetry

SILENCE_SECONDS = 300.0
"""Without a pass or an idle tick for this long, the process hangs."""


class Probes:
    """/livez says whether the process turns, so that a restart helps; /healthz whether it can do its work, in words."""

    def __init__(self, telemetry: Telemetry, problem: Callable[[], str | None]) -> None:
        self._telemetry = telemetry
        self.problem = problem
        """Asked for what keeps the process from its work; None: nothing. Another is asked once it leads."""

    @asynccontextmanager
    async def serving(self, port: int) -> AsyncIterator[None]:
        """Answers until the end of the block."""
        app = web.Application()
        paths = {"/livez": self._livez, "/healthz": self._healthz, "/metrics": self._metrics}
        app.add_routes([web.get(path, answer) for path, answer in paths.items()])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, port=port).start()
            yield
        finally:
            await runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        return _answer(self._silence())

    async def _healthz(self, _: web.Request) -> web.Response:
        return _answer(self._silence() or self.problem())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._telemetry.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    def _silence(self) -> str | None:
        silence = self._telemetry.silence_seconds
        hangs = self._telemetry.leads and silence >= SILENCE_SECONDS
        return f"the last pass or idle tick was {silence:.0f} s ago" if hangs else None


def _answer(problem: str | None) -> web.Response:
    return web.Response(status=200 if problem is None else 503, text=f"{problem or 'ok'}\n")
