"""What any client may ask of a role's server before anybody knows who it is: bytes of headers, time, connections.

The parser is h11, whatever else is installed: httptools, which comes with vLLM, has no limit on headers.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEAD_BYTES = 16 * 1024
"""A request line and its headers; ours take some hundred bytes."""
HEAD_SECONDS = 10.0
"""From a connection, or from the first byte of its next request, to the end of the headers."""
BODY_SECONDS = 120.0
"""From there to the end of the body."""
MAX_CONNECTIONS = 512
"""At once. A job's clients hold a few each, probes and Prometheus one."""


class TooLarge(Exception):
    """A body of more bytes than its path takes."""


class LimitedBody:
    """An application that raises TooLarge where it reads a body that says it has more than `most` bytes, or has them.

    Starlette's own limit answers without a word on what to do.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self._app, self._most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        declared = int(Headers(scope=scope).get("content-length", "0"))  # h11 lets digits alone through
        came = 0

        async def limited() -> Message:
            nonlocal came
            self._check(declared)
            message = await receive()
            came += len(message.get("body", b""))
            self._check(came)
            return message

        await self._app(scope, limited, send)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise TooLarge(f"the body is larger than {self._most} bytes; send fewer rows")


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 with a deadline for what is read, and a limit on connections.

    Where one too many comes, the oldest one goes that has sent no whole head; a flood of those keeps nobody else out.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._deadline: asyncio.TimerHandle | None = None
        self._part: str | None = None
        self._opened_at = self.loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect("head", HEAD_SECONDS)
        if len(self.connections) > MAX_CONNECTIONS:
            unfinished = [c for c in self.connections if isinstance(c, LimitedProtocol) and c._part == "head"]
            min(unfinished, key=lambda connection: connection._opened_at).transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        state = self.conn.their_state
        if state is h11.IDLE:
            self._expect("head", HEAD_SECONDS)
        elif state is h11.SEND_BODY:
            self._expect("body", BODY_SECONDS)
        else:
            self._expect(None, 0)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None, 0)
        super().connection_lost(exc)

    def _expect(self, part: str | None, seconds: float) -> None:
        """The rest of this part within so many seconds from when it began; with None nothing is being read."""
        if part == self._part:
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._part = part
        self._deadline = None if part is None else self.loop.call_later(seconds, self.transport.abort)
