"""What `prepare` has pinned reaches the roles that have no storage to read it in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from roles import TinyJob

from alignment_api.contract.context import InstanceStatus, Pins
from alignment_api.contract.status import ModelReport, PrecisionReport
from alignment_api.yaml.manifest import read_manifest as read_job
from alignment_trainer.data import pins as module
from alignment_trainer.data.pins import pins_of
from alignment_trainer.model.inspect import model_fingerprint
from alignment_trainer.model.precision import PrecisionUndecided, settled
from alignment_trainer.model.served_model import find_served_model
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard

PRECISION = PrecisionReport(value="fp32", why="another machine's CPU")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob(tmp_path_factory.mktemp("job"), spec={"training": {"precision": "auto"}})


def server(job: TinyJob, **fields: object) -> Instance:
    """A reference server to which the job's storage is not mounted."""
    context = job.context("reference").model_copy(update={"storage": "/volumes/nowhere", "peers": {}, **fields})
    manifest = read_job(Path(context.job_file).read_text(), "job.yaml")
    return Instance(context, manifest, StatusBoard(), Metrics("tiny", "reference"), Interruption())


def model_of(job: TinyJob) -> ModelReport:
    return ModelReport(parameters=1, fingerprint=model_fingerprint(job.folder / "model"))


@contextmanager
def preparing(*answers: InstanceStatus) -> Iterator[str]:
    """`prepare`'s /status, with these answers one after the other; the last one stays."""
    left = list(answers)

    class Status(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (left.pop(0) if len(left) > 1 else left[0]).model_dump_json(by_alias=True).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Status)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}"
    finally:
        http.shutdown()
        http.server_close()


def test_a_server_takes_what_the_runtime_says(job: TinyJob) -> None:
    pins = Pins(model=model_of(job), precision=PRECISION)
    instance = server(job, pins=pins)
    assert pins_of(instance) == pins
    assert settled(instance).spec.training.precision == "fp32"
    assert find_served_model(instance)[1] == pins.model.fingerprint


def test_a_server_of_another_model_than_was_pinned_refuses(job: TinyJob) -> None:
    pins = Pins(model=ModelReport(parameters=1, fingerprint="another"), precision=PRECISION)
    with pytest.raises(UserError, match="is not the model that `prepare` pinned"):
        find_served_model(server(job, pins=pins))


def test_a_server_that_comes_while_prepare_runs_asks_it_until_it_knows(
    job: TinyJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TICK_SECONDS", 0.01)
    early = InstanceStatus(state="checking storage", ready=False, precision=PRECISION)
    late = InstanceStatus(state="data ready", ready=True, precision=PRECISION, model=model_of(job))
    with preparing(early, late) as url:
        instance = server(job, peers={"prepare": (url,)})
        assert settled(instance).spec.training.precision == "fp32"
        assert pins_of(instance) == Pins(model=model_of(job), precision=PRECISION)


def test_a_server_that_is_asked_to_go_asks_no_longer(job: TinyJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TICK_SECONDS", 0.01)
    instance = server(job, peers={"prepare": ("http://127.0.0.1:9",)})
    asked = iter([False, False])
    instance = replace(instance, stop=lambda: next(asked, True))  # type: ignore[arg-type]
    with pytest.raises(PrecisionUndecided):
        settled(instance)
