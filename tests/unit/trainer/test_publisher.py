"""What a trainee publishes, and what it knows of the servers that poll it."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from roles import TinyJob
from safetensors.torch import load

from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard
from alignment_trainer.process.status_server import StatusServer
from alignment_trainer.weights import publisher as module
from alignment_trainer.weights.manifest import WeightManifest
from alignment_trainer.weights.publisher import WeightPublisher

POLL = {"name": "rollout-0", "port": "8000", "attempt": "0", "version": "0"}
Served = tuple[WeightPublisher, httpx.Client]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob(tmp_path_factory.mktemp("job"))


@pytest.fixture
def served(job: TinyJob) -> Iterator[Served]:
    """A publisher of attempt 3, and a client with the token."""
    context = job.context("policy", life=3)
    board, metrics = StatusBoard(), Metrics("tiny", "actor")
    with StatusServer(("127.0.0.1", 0), "secret", board, metrics.registry) as server:
        spec = read_manifest((job.folder / "job.yaml").read_text(), "job.yaml")
        instance = Instance(context, spec, board, metrics, Interruption(), server)
        headers = {"Authorization": "Bearer secret"}
        with (
            WeightPublisher(instance) as publisher,
            httpx.Client(base_url=f"http://127.0.0.1:{server.port}", headers=headers) as client,
        ):
            yield publisher, client


def _weights(fill: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((2, 3), fill), "b": torch.full((4,), fill, dtype=torch.bfloat16)}


def _manifest(client: httpx.Client) -> WeightManifest:
    return WeightManifest.model_validate_json(client.get("/v1/weights", params=POLL).text)


def test_a_poll_before_the_first_version_registers_and_gets_nothing(served: Served) -> None:
    publisher, client = served
    assert client.get("/v1/weights", params=POLL).status_code == 204
    assert [(s.name, s.url, s.attempt, s.version, s.error) for s in publisher.servers()] == [
        ("rollout-0", "http://127.0.0.1:8000", 0, 0, None)
    ]


def test_parts_hold_what_was_published_under_their_checksums(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher, client = served
    monkeypatch.setattr(module, "PART_BYTES", 24)  # `a` alone fills one
    publisher.publish(0, _weights(1.5).items())
    manifest = _manifest(client)
    assert (manifest.attempt, manifest.version) == (3, 0)
    assert manifest.tensors == {"a": ("float32", (2, 3)), "b": ("bfloat16", (4,))}
    bodies = [client.get(part.sources[0]).content for part in manifest.parts]
    assert [hashlib.sha256(body).hexdigest() for body in bodies] == [part.sha256 for part in manifest.parts]
    assert [len(body) for body in bodies] == [part.bytes for part in manifest.parts]
    found = [load(body) for body in bodies]
    assert [list(each) for each in found] == [["a"], ["b"]]
    assert found[0]["a"].equal(_weights(1.5)["a"])
    assert found[1]["b"].equal(_weights(1.5)["b"])


def test_a_range_of_a_part_is_that_range(served: Served) -> None:
    publisher, client = served
    publisher.publish(0, _weights(1.5).items())
    source = _manifest(client).parts[0].sources[0]
    rest = client.get(source, headers={"Range": "bytes=100-"})
    assert rest.status_code == 206
    assert rest.content == client.get(source).content[100:]


def test_weights_are_behind_the_token(served: Served) -> None:
    publisher, client = served
    publisher.publish(0, _weights(1.5).items())
    source = _manifest(client).parts[0].sources[0]
    for path in ("/v1/weights", source):
        assert httpx.get(f"{client.base_url}{path}").status_code == 401


def test_the_last_two_versions_are_kept(served: Served, job: TinyJob) -> None:
    publisher, client = served
    sources = []
    for version in (4, 5, 6):
        publisher.publish(version, _weights(version).items())
        sources.append(_manifest(client).parts[0].sources[0])
    assert [client.get(source).status_code for source in sources] == [404, 200, 200]
    assert sorted(path.name for path in (job.folder / "scratch").iterdir()) == ["weights-3-5", "weights-3-6"]


def test_delivery_takes_until_the_slowest_of_those_that_were_there_has_the_weights(served: Served) -> None:
    publisher, client = served

    def poll(name: str, version: int) -> float | None:
        client.get("/v1/weights", params=POLL | {"name": name, "attempt": "3", "version": str(version)})
        line = re.search(r"^alignment_delivery_seconds\{.*\} (\S+)$", client.get("/metrics").text, re.M)
        return float(line[1]) if line else None

    assert poll("rollout-0", 0) is poll("rollout-1", 0) is None
    publisher.publish(1, _weights(1.0).items())
    assert poll("rollout-0", 0) is None
    first = poll("rollout-0", 1)
    time.sleep(0.2)
    slowest = poll("rollout-1", 1)
    assert first is not None
    assert slowest is not None
    assert slowest >= first + 0.2
    assert poll("rollout-2", 1) == poll("rollout-0", 1) == slowest, "one that came later was not waited for"


def test_a_version_is_never_published_twice(served: Served) -> None:
    publisher, _ = served
    publisher.publish(5, _weights(1.0).items())
    with pytest.raises(ValueError, match="weights 5 come after 5"):
        publisher.publish(5, _weights(2.0).items())


def test_what_was_published_goes_with_the_publisher(job: TinyJob, served: Served) -> None:
    publisher, client = served
    publisher.publish(0, _weights(1.0).items())
    publisher.__exit__(None, None, None)
    assert list((job.folder / "scratch").iterdir()) == []
    assert client.get("/v1/weights", params=POLL).status_code == 204


def test_a_server_tells_its_version_and_its_error_and_is_forgotten_when_silent(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, client = served
    client.get("/v1/weights", params=POLL)
    client.get("/v1/weights", params=POLL | {"name": "rollout-1", "version": "7", "error": "no tensor `c`"})
    assert [(s.name, s.version, s.error) for s in publisher.servers()] == [
        ("rollout-0", 0, None),
        ("rollout-1", 7, "no tensor `c`"),
    ]
    monkeypatch.setattr(module, "HEARD_WITHIN", 0.0)
    assert publisher.servers() == ()


def test_no_more_servers_are_remembered_than_a_role_may_have(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher, client = served
    monkeypatch.setattr(module, "MOST_SERVERS", 2)
    answers = [client.get("/v1/weights", params=POLL | {"name": f"rollout-{n}"}).status_code for n in (0, 1, 2, 1)]
    assert answers == [204, 204, 503, 204]
    monkeypatch.setattr(module, "HEARD_WITHIN", 0.0)
    assert client.get("/v1/weights", params=POLL | {"name": "rollout-2"}).status_code == 204
    assert publisher.servers() == ()


@pytest.mark.parametrize(("told", "url"), [("10.2.0.7", "http://10.2.0.7:8000"), ("fd00::7", "http://[fd00::7]:8000")])
def test_a_server_is_asked_at_the_address_that_it_says(served: Served, told: str, url: str) -> None:
    """Its polls may come from a proxy's address, at which nobody else reaches it."""
    publisher, client = served
    client.get("/v1/weights", params=POLL | {"address": told})
    assert [server.url for server in publisher.servers()] == [url]


@pytest.mark.parametrize("told", ["", "rollout-0", "0.0.0.0", "::", "224.0.0.1", "10.0.0.7:80", "10.0.0.7/x"])
def test_what_is_no_address_is_refused(served: Served, told: str) -> None:
    publisher, client = served
    assert client.get("/v1/weights", params=POLL | {"address": told}).status_code == 400
    assert publisher.servers() == ()


@pytest.mark.parametrize(
    ("host", "told", "address"),
    [("0.0.0.0", "10.2.0.7", "10.2.0.7"), ("127.0.0.1", None, "127.0.0.1"), ("0.0.0.0", None, None)],
)
def test_an_instance_knows_its_address_from_its_runtime(
    job: TinyJob, monkeypatch: pytest.MonkeyPatch, host: str, told: str | None, address: str | None
) -> None:
    if told is not None:
        monkeypatch.setenv("ALIGNMENT_ADDRESS", told)
    spec = read_manifest((job.folder / "job.yaml").read_text(), "job.yaml")
    context = job.context("rollout").model_copy(update={"host": host})
    assert Instance(context, spec, StatusBoard(), Metrics("tiny", "rollout"), Interruption()).address == address


@pytest.mark.parametrize("wrong", [{"name": "rollout-0"}, POLL | {"port": "http"}])
def test_a_poll_that_is_none_is_refused_with_an_example(served: Served, wrong: dict[str, str]) -> None:
    answer = served[1].get("/v1/weights", params=wrong)
    assert answer.status_code == 400
    assert "send ?name=rollout-0&address=10.0.0.7&port=8000" in answer.json()["error"]


def test_without_room_in_memory_it_says_whose_memory(
    served: Served, job: TinyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(module.ScratchFull, match="raise `memory` of the trainee"):
        served[0].publish(0, _weights(1.0).items())
