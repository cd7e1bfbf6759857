"""What a neighbour without a token, or a clumsy one with it, can do to a role's server: nothing."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from alignment_trainer.process import http_limits
from alignment_trainer.process.errors import WireError
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard
from alignment_trainer.process.status_server import StatusServer

TOKEN = {"Authorization": "Bearer secret"}
HALF = b"POST /v1/count HTTP/1.1\r\nHost: x\r\nContent-Le"


@pytest.fixture
def port() -> Iterator[int]:
    async def count(request: Request) -> Response:
        return JSONResponse({"bytes": len(await request.body())})

    async def malformed(_request: Request) -> Response:
        raise WireError("no tensor `tokens`; send one")

    board = StatusBoard()
    board.update(ready=True)
    with StatusServer(("127.0.0.1", 0), "secret", board, Metrics("helpful", "critic").registry) as server:
        server.add_route("/v1/count", count, max_bytes=1000)
        server.add_route("/v1/malformed", malformed)
        yield server.port


def healthy(port: int) -> bool:
    return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200


Connect = Callable[..., socket.socket]


@pytest.fixture
def connect(port: int) -> Iterator[Connect]:
    """Opens connections that close with the test, and sends the first bytes."""
    with ExitStack() as clients:

        def connected(sent: bytes = b"") -> socket.socket:
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            client.sendall(sent)
            return client

        yield connected


def is_open(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        client.setblocking(True)


def await_closed(clients: list[socket.socket]) -> None:
    """However slow the machine."""
    deadline = time.monotonic() + 60
    while any(map(is_open, clients)):
        assert time.monotonic() < deadline, "still open"
        time.sleep(0.01)


def test_headers_without_end_are_cut_off(port: int, connect: Connect) -> None:
    client, sent = connect(b"GET /healthz HTTP/1.1\r\n"), 0
    with suppress(ConnectionError):
        while sent < 64 * 2**20:
            sent += client.send(b"x-%d: %s\r\n" % (sent, b"y" * 1000))
    assert sent < 64 * 2**20
    assert healthy(port)


def test_requests_that_are_never_finished_are_closed(
    port: int, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_limits, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(http_limits, "BODY_SECONDS", 0.2)
    body = b"POST /v1/count HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\nContent-Length: 9\r\n\r\nhalf"
    await_closed([connect(), connect(HALF), connect(body)])
    assert healthy(port)


def test_a_second_request_on_a_connection_has_its_own_time(
    port: int, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=TOKEN) as client:
        assert client.post("/v1/count", content=b"12345").json() == {"bytes": 5}
        monkeypatch.setattr(http_limits, "HEAD_SECONDS", 0.2)
        assert client.post("/v1/count", content=b"123").json() == {"bytes": 3}
    half = connect(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert half.recv(100).startswith(b"HTTP/1.1 200")
    half.sendall(HALF)
    deadline = time.monotonic() + 60
    half.settimeout(60)
    while half.recv(4096):
        assert time.monotonic() < deadline
    assert healthy(port)


def test_a_flood_of_connections_keeps_nobody_out(port: int, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "MAX_CONNECTIONS", 8)
    flood = [connect(HALF) for _ in range(30)]
    await_closed(flood[:20])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=TOKEN) as client:
        assert client.post("/v1/count", content=b"123").json() == {"bytes": 3}
        flood += [connect(HALF) for _ in range(30)]
        assert healthy(port)
    assert sum(map(is_open, flood)) <= 8


def test_a_body_that_is_too_large_gets_413_declared_or_not(port: int) -> None:
    url = f"http://127.0.0.1:{port}/v1/count"
    assert httpx.post(url, content=b"x" * 1000, headers=TOKEN).json() == {"bytes": 1000}
    assert httpx.post(url, content=b"x" * 1001, headers=TOKEN).status_code == 413
    chunks = (b"x" * 100 for _ in range(11))
    answer = httpx.post(url, content=chunks, headers=TOKEN)
    assert (answer.status_code, answer.json()) == (
        413,
        {"error": "the body is larger than 1000 bytes; send fewer rows"},
    )
    assert healthy(port)


def test_a_malformed_body_gets_400_with_the_reason_on_every_route(port: int) -> None:
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/malformed", headers=TOKEN)
    assert (answer.status_code, answer.json()) == (400, {"error": "no tensor `tokens`; send one"})


def test_there_are_no_websockets(connect: Connect) -> None:
    upgrade = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    client = connect(upgrade + b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
    assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_whoever_has_no_token_is_told_and_gone(connect: Connect) -> None:
    client = connect(b"POST /v1/count HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\nhalf")
    assert client.recv(100).startswith(b"HTTP/1.1 401")
    await_closed([client])
