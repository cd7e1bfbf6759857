"""HTTP servers that say what a test wants of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

Answer = tuple[int, bytes]


@contextmanager
def serving(answer: Callable[[bytes], Answer], healthz: Callable[[], Answer] = lambda: (200, b"ok")) -> Iterator[str]:
    """A server that says what a test wants of it, at the URL that comes."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(*healthz())

        def do_POST(self) -> None:
            self._send(*answer(self.rfile.read(int(self.headers["Content-Length"]))))

        def _send(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def hanging_after(answers: int, url: str, path: str, token: str) -> Iterator[str]:
    """Passes so many requests on to a server, and holds the others until it ends: then it is gone with them."""
    passed, ended = iter(range(answers)), threading.Event()

    def answer(body: bytes) -> Answer:
        if next(passed, None) is None:
            ended.wait()
            return 503, b"gone"
        headers = {"Authorization": f"Bearer {token}"}
        found = httpx.post(f"{url}{path}", content=body, headers=headers, timeout=300, trust_env=False)
        return found.status_code, found.content

    with serving(answer) as own:
        try:
            yield own
        finally:
            ended.set()
