"""What a role's process shows to all, and what only to those with the job's token."""

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard
from alignment_trainer.process.status_server import StatusServer, TokenGuard


@pytest.fixture
def parts() -> tuple[StatusBoard, Metrics]:
    return StatusBoard(), Metrics("helpful", "policy")


@pytest.fixture
def url(parts: tuple[StatusBoard, Metrics]) -> Iterator[str]:
    def echo(request: Request) -> Response:
        return JSONResponse({"path": request.url.path})

    with StatusServer(("127.0.0.1", 0), "secret", parts[0], parts[1].registry) as server:
        server.add_route("/v1/echo", echo)
        yield f"http://127.0.0.1:{server.port}"


def test_healthz_is_503_with_the_state_until_ready(url: str, parts: tuple[StatusBoard, Metrics]) -> None:
    parts[0].update(state="loading the model")
    answer = httpx.get(f"{url}/healthz")
    assert (answer.status_code, answer.text) == (503, "loading the model\n")
    parts[0].update(state="serving", ready=True)
    assert httpx.get(f"{url}/healthz").status_code == 200


def test_status_shows_state_and_memory(url: str, parts: tuple[StatusBoard, Metrics]) -> None:
    parts[0].update(metrics={"loss": 0.5})
    status = httpx.get(f"{url}/status").json()
    assert status["state"] == "starting"
    assert status["metrics"] == {"loss": 0.5}
    assert status["memoryBytes"] > 10 * 2**20


def test_metrics_are_prometheus_text_with_job_and_role(url: str, parts: tuple[StatusBoard, Metrics]) -> None:
    parts[1].set("loss", 0.25)
    parts[1].add_tokens(7)
    with parts[1].phase("tokenize"):
        pass
    families = {f.name: f for f in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)}
    loss = families["alignment_loss"].samples[0]
    assert loss.value == 0.25
    assert set(loss.labels.values()) == {"helpful", "policy"}
    assert families["alignment_tokens"].samples[0].value == 7
    assert families["alignment_phase_seconds"].samples[0].labels["phase"] == "tokenize"
    assert families["alignment_resident_memory_bytes"].samples[0].value > 10 * 2**20


@pytest.mark.parametrize("header", [None, "secret", "Bearer wrong", "Bearer secret2", "bearer secret", "Bearer x"])
def test_everything_else_demands_the_token(url: str, header: str | None) -> None:
    headers = {"Authorization": header} if header else {}
    for path in ("/v1/echo", "/nothing", "/status/", "//status", "/metrics/../v1/echo"):
        answer = httpx.post(f"{url}{path}", headers=headers)
        assert answer.status_code == 401, path
    assert "Authorization: Bearer" in answer.json()["error"]


def test_the_token_opens_the_route(url: str) -> None:
    headers = {"Authorization": "Bearer secret"}
    assert httpx.post(f"{url}/v1/echo", headers=headers).json() == {"path": "/v1/echo"}
    assert httpx.get(f"{url}/v1/echo", headers=headers).status_code == 405
    assert httpx.post(f"{url}/nothing", headers=headers).status_code == 404


def test_a_server_without_a_token_is_refused() -> None:
    with pytest.raises(ValueError, match="token is empty"):
        TokenGuard(JSONResponse({}), "")


def test_a_taken_port_is_an_error_and_a_stopped_server_leaves_no_thread(parts: tuple[StatusBoard, Metrics]) -> None:
    before = set(threading.enumerate())
    with StatusServer(("127.0.0.1", 0), "secret", *_of(parts)) as server:
        port = server.port
        assert httpx.get(f"http://127.0.0.1:{port}/status").status_code == 200
        with pytest.raises(OSError, match="in use"), StatusServer(("127.0.0.1", port), "secret", *_of(parts)):
            pass
    assert not set(threading.enumerate()) - before  # threads of others may end meanwhile
    with socket.create_server(("127.0.0.1", port)):
        pass


def _of(parts: tuple[StatusBoard, Metrics]) -> tuple[StatusBoard, object]:
    return parts[0], parts[1].registry
