"""The server of every role: /healthz, /status and /metrics for all, every other path behind the job's token."""

from __future__ import annotations

import hmac
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from alignment_trainer.process.errors import WireError
from alignment_trainer.process.http_limits import MAX_HEAD_BYTES, LimitedBody, LimitedProtocol, TooLarge
from alignment_trainer.process.status_board import StatusBoard

OPEN_PATHS = frozenset({"/healthz", "/status", "/metrics"})
MAX_BODY_BYTES = 64 * 2**20
"""16 million numbers, which is more than a batch has tokens."""
_STOP_SECONDS = 5
Handler = Callable[[Request], Response | Awaitable[Response]]


def refuse(code: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer that says what is wrong."""
    return JSONResponse({"error": message}, code, headers)


class TokenGuard:
    """Lets through the open paths and whoever shows the job's token; the one guard of every server."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        if not token:
            raise ValueError("the job's token is empty; a server without a token would be open to all")
        self._app, self._expected = app, f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS or self._is_allowed(scope):
            await self._app(scope, receive, send)
        else:
            # Closed: a body that nobody will read may still be on its way.
            answer = refuse(401, "send the job's token as `Authorization: Bearer <token>`", {"Connection": "close"})
            await answer(scope, receive, send)

    def _is_allowed(self, scope: Scope) -> bool:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        return hmac.compare_digest(headers.get(b"authorization", b""), self._expected)


class StatusServer:
    """Serves a board and a registry from a thread of its own, so that it answers while the role works.

    Used as a context manager: it listens on entry (OSError where the port is taken) and is gone on exit.
    """

    def __init__(self, address: tuple[str, int], token: str, board: StatusBoard, registry: CollectorRegistry) -> None:
        self._address, self._board, self._registry = address, board, registry
        self._app = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/status", self._status),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={WireError: _refusal(400), TooLarge: _refusal(413)},
        )
        config = uvicorn.Config(
            TokenGuard(self._app, token),
            http=LimitedProtocol,
            ws="none",
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="status-server", daemon=True)

    def add_route(self, path: str, handler: Handler, method: str = "POST", max_bytes: int = MAX_BODY_BYTES) -> None:
        """Serves `path`, behind the token. A plain function runs in a thread, so that /healthz goes on.

        max_bytes: of a body, 413 for more. A WireError of the handler is answered with 400.
        """
        route = Route(path, handler, methods=[method])
        route.app = LimitedBody(route.app, max_bytes)
        self._app.router.routes.append(route)

    def __enter__(self) -> StatusServer:
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        self._socket = socket.create_server(self._address, family=family, backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(2 * _STOP_SECONDS)
        self._socket.close()

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])

    async def _healthz(self, _request: Request) -> Response:
        status = self._board.read()
        return PlainTextResponse(status.state + "\n", 200 if status.ready else 503)

    async def _status(self, _request: Request) -> Response:
        return Response(self._board.read().model_dump_json(exclude_none=True), media_type="application/json")

    async def _metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type=CONTENT_TYPE_LATEST)


def _refusal(code: int) -> Callable[[Request, Exception], Response]:
    return lambda _request, error: refuse(code, str(error))
