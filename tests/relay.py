"""Relays before a server: one loses answers, as a network does, one stops in the middle of a request."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class Relay:
    """Passes connections on; each of `losses` times an answer to `request` is cut off after `after` bytes.

    request: how its first line begins, a regular expression.
    """

    def __init__(self, server: str, request: str, losses: int, after: int) -> None:
        found = urlsplit(server)
        self._server, self._request, self._after = (found.hostname, found.port), re.compile(request.encode()), after
        self.losses_left = losses
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    @contextmanager
    def running(self) -> Iterator[Relay]:
        threading.Thread(target=self._accept, daemon=True).start()
        try:
            yield self
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._server) as server:
            self._answer(client, server)
            for end in (client, server):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)  # the other thread still reads it

    def _answer(self, client: socket.socket, server: socket.socket) -> None:
        asked: list[bytes] = []
        threading.Thread(target=self._ask, args=(client, server, asked), daemon=True).start()
        passed = 0
        with suppress(OSError):
            while answer := server.recv(65536):
                chosen = self.losses_left and self._request.match(asked[-1])
                loses = chosen and not answer.startswith(b"HTTP/1.1 100")
                if loses and passed + len(answer) > self._after:
                    self.losses_left -= 1
                    client.sendall(answer[: self._after - passed])
                    return
                passed += len(answer) if loses else 0
                client.sendall(answer)

    def _ask(self, client: socket.socket, server: socket.socket, asked: list[bytes]) -> None:
        with suppress(OSError):
            while sent := client.recv(65536):
                if b" HTTP/1.1\r\n" in sent:
                    asked.append(sent.partition(b"\r\n")[0])
                server.sendall(sent)
            server.shutdown(socket.SHUT_WR)


class Dam(Relay):
    """Passes everything on until a request names `target`: of that `after` bytes pass, and then nothing any more."""

    def __init__(self, server: str, target: str, after: int) -> None:
        super().__init__(server, "", losses=0, after=after)
        self._target = target.encode()
        self.reached, self._opened = threading.Event(), threading.Event()

    @contextmanager
    def running(self) -> Iterator[Dam]:
        try:
            with super().running():
                yield self
        finally:
            self._opened.set()

    def _ask(self, client: socket.socket, server: socket.socket, asked: list[bytes]) -> None:
        left: int | None = None
        with suppress(OSError):
            while sent := client.recv(65536):
                if self._target in sent.partition(b"\r\n")[0]:
                    left = self._after
                if left is not None and len(sent) >= left:
                    server.sendall(sent[:left])
                    self.reached.set()
                    self._opened.wait()
                    return
                left = left - len(sent) if left is not None else None
                server.sendall(sent)
            server.shutdown(socket.SHUT_WR)
