"""What the actor keeps of a rollout that it had to leave, asked of a server over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from alignment_trainer.data.examples import PromptExample
from alignment_trainer.data.experience import Sampled, Samples, load_samples, rollout_of, save_samples
from alignment_trainer.data.storage import Folder
from alignment_trainer.experience.rollout_client import Rollouts, SamplingPlan
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.weights.publisher import RolloutServer

ROWS = tuple(PromptExample(10 + number, (number + 1, 7), {}) for number in range(5))
PLAN = SamplingPlan(samples=2, max_new_tokens=4, temperature=1.0, stop=(2,), seed=(3, 0), versions=(6, 6))


class Echo(ThreadingHTTPServer):
    """Completes a prompt with its seed; after `answers` prompts it says so, and lets the others wait."""

    daemon_threads = True

    def __init__(self, answers: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers, self.asked = answers, []
        self.lock, self.is_silent, self.is_over = threading.Lock(), threading.Event(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Echo

    def do_GET(self) -> None:
        self._answer(b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            has_answer = len(self.server.asked) < self.server.answers
            self.server.asked += [tuple(body["prompt"])] * has_answer
        if not has_answer:
            self.server.is_silent.set()
            self.server.is_over.wait()
            self.close_connection = True
            return
        one = {"tokens": [body["seed"] % 97, 2], "logprobs": [-0.1, -1 / 3], "finished": True}
        self._answer(json.dumps({"version": 6, "completions": [one] * body["n"]}).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def server() -> Iterator[Echo]:
    with Echo(answers=3) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.is_over.set()
        found.shutdown()


def rollouts(server: Echo) -> Rollouts:
    known = (RolloutServer("one", server.url, 1, 6, None),)
    return Rollouts(lambda: known, 1, "secret", Metrics("job", "actor"))


def test_a_rollout_that_was_left_goes_on_with_what_is_missing(server: Echo, tmp_path: Path) -> None:
    """Some of five prompts, then SIGTERM; the next attempt asks for the others, and has what one attempt has."""
    part = rollouts(server).sample(ROWS, PLAN, server.is_silent.is_set)
    assert 0 < len(part.completions) <= 3
    save_samples(ROWS, part, Folder(tmp_path))
    kept = load_samples(ROWS, Folder(tmp_path))
    missing = [ROWS[place].prompt for place in kept.missing(5)]
    assert len(missing) == 5 - len(part.completions)

    server.answers, server.asked = 100, []
    whole = rollouts(server).sample(ROWS, PLAN, lambda: False, kept)
    assert sorted(server.asked) == sorted(missing)
    server.asked = []
    undisturbed = rollouts(server).sample(ROWS, PLAN, lambda: False)
    one, other = rollout_of(ROWS, whole), rollout_of(ROWS, undisturbed)
    assert one.groups == other.groups
    assert one.logprobs.tolist() == other.logprobs.tolist()
    assert (one.versions == 6).all()


def test_nobody_is_asked_for_what_is_there() -> None:
    """Not even with no server alive: an attempt that was cut off in scoring goes straight on to it."""
    completion = (Sampled((4, 2), (-0.5, -0.25), True, 6),) * 2
    former = Samples(dict.fromkeys(range(4), completion), {4: "5 servers were lost over it"})
    nobody = Rollouts(lambda: (), 1, "secret", Metrics("job", "actor"))
    assert nobody.sample(ROWS, PLAN, lambda: False, former) == former


def test_samples_survive_their_file(tmp_path: Path) -> None:
    samples = Samples(
        {
            3: (Sampled((4, 2), (-0.5, -0.25), True, 6), Sampled((9,), (-2.0,), False, 5)),
            0: (Sampled((8,), (-0.125,), False, 6), Sampled((1, 1, 2), (-1.0, -3.0, -4.0), True, 6)),
        },
        {2: "5 servers were lost over it"},
    )
    save_samples(ROWS, samples, Folder(tmp_path))
    assert load_samples(ROWS, Folder(tmp_path)) == samples
    assert load_samples(ROWS, Folder(tmp_path)).missing(5) == (1, 4)


def test_samples_of_other_prompts_are_left_alone(tmp_path: Path) -> None:
    save_samples(ROWS, Samples({0: (Sampled((8,), (-0.125,), True, 6),) * 2}), Folder(tmp_path))
    others = (replace(ROWS[0], row=99), *ROWS[1:])
    assert load_samples(others, Folder(tmp_path)) == Samples()
    assert load_samples(ROWS, Folder(tmp_path / "nowhere")) == Samples()
