"""A rollout server samples by the weights that it says, whatever happens to the trainee and to itself."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from roles import TinyJob, wait_until
from trainee import move, trainee, weights_of

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.engines.scoring import token_values
from alignment_trainer.model.load import LoadedModel, load_model
from alignment_trainer.weights.publisher import RolloutServer, WeightPublisher

START_SECONDS = 600
TEMPERATURE = 0.7
LONG = tuple(int(token) for token in np.random.default_rng(0).integers(3, 300, size=300))
"""More than the 128 tokens of a block of vLLM's prefix cache on CPUs."""
ALGORITHM = {"grpo": {"maxNewTokens": 32, "rewards": [{"function": {"length": {"maxTokens": 8}}}]}}
SPEC = {
    "algorithm": ALGORITHM,
    "training": {"maxLength": 512},
    "roles": {"rollout": {"kvCacheMemory": "128Mi"}},
}


@dataclass(frozen=True)
class Server:
    job: TinyJob
    process: subprocess.Popen[bytes]
    attempts: Iterator[int]

    def ask(self, token: str = "secret", **changes: Any) -> httpx.Response:
        """Completions by any version, unless changed."""
        asked = {
            "versions": [0, 1000],
            "prompt": [5, 6, 7, 8],
            "n": 3,
            "seed": 7,
            "max_tokens": 20,
            "temperature": TEMPERATURE,
            "stop_token_ids": [2],
        } | changes
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.post(f"{self.job.url('rollout')}/v1/completions", json=asked, headers=headers, timeout=600)

    def state(self) -> str:
        return str(httpx.get(f"{self.job.url('rollout')}/status", timeout=120).json()["state"])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob(tmp_path_factory.mktemp("job"), spec=SPEC)


@pytest.fixture(scope="module")
def server(job: TinyJob) -> Iterator[Server]:
    """Ready though there is no trainee yet."""
    process = job.start("rollout", peers={"actor": (job.url("actor"),)})
    try:
        wait_until(lambda: _is_ready(job, process), START_SECONDS)
        yield Server(job, process, count(1))
    finally:
        process.terminate()
        process.wait(900)


@pytest.fixture
def model(job: TinyJob) -> LoadedModel:
    """The base model, to be changed by a test."""
    return load_model(job.folder / "model", temperature=TEMPERATURE)


def _is_ready(job: TinyJob, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, (job.folder / "rollout.log").read_text()[-4000:]
    try:
        return httpx.get(f"{job.url('rollout')}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _agrees(model: LoadedModel, prompt: tuple[int, ...], answer: httpx.Response) -> bool:
    """Whether the answer's log-probs are those of this model."""
    completions = answer.json()["completions"]
    group = PromptGroup(prompt, tuple(tuple(entry["tokens"]) for entry in completions))
    told = torch.tensor([value for entry in completions for value in entry["logprobs"]])
    return torch.allclose(token_values(model.scorer, [group], 10**6), told, rtol=0, atol=1e-4)


def _wait_for(publisher: WeightPublisher, condition: Callable[[RolloutServer], bool]) -> None:
    wait_until(lambda: any(condition(known) for known in publisher.servers()))


def test_before_any_trainee_it_samples_by_the_base_model(server: Server, model: LoadedModel) -> None:
    answer = server.ask(versions=[0, 0])
    assert answer.json()["version"] == 0
    assert _agrees(model, (5, 6, 7, 8), answer)


def test_a_seed_decides_the_completions(server: Server) -> None:
    first, same, other = server.ask(), server.ask(), server.ask(seed=100)
    assert first.json() == same.json()
    assert first.json() != other.json()
    tokens = [entry["tokens"] for entry in first.json()["completions"]]
    assert len(tokens) == 3
    assert tokens[0] != tokens[1] != tokens[2]


def test_more_prompts_at_once_than_a_batch_holds_are_sampled_as_each_alone(server: Server) -> None:
    """7,200 tokens of prompts: vLLM would cut the last of a batch in two, and on CPUs die of its seed."""
    prompts = [[1 + (place + token) % 300 for token in range(300)] for place in range(24)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: server.ask(prompt=prompt, max_tokens=4), prompts))
    assert [answer.status_code for answer in answers] == [200] * len(prompts)
    alone = server.ask(prompt=prompts[-1], max_tokens=4).json()["completions"]
    told = answers[-1].json()["completions"]
    assert [one["tokens"] for one in told] == [one["tokens"] for one in alone]


def test_a_completion_is_finished_where_a_stop_token_ends_it(server: Server) -> None:
    whole = server.ask(stop_token_ids=[]).json()["completions"][0]
    assert (len(whole["tokens"]), whole["finished"]) == (20, False)
    last = whole["tokens"][9]
    ended = server.ask(stop_token_ids=[last]).json()["completions"][0]
    end = whole["tokens"].index(last) + 1
    assert (ended["tokens"], ended["finished"]) == (whole["tokens"][:end], True)


def test_prompt_and_completion_stay_within_max_length(server: Server) -> None:
    answer = server.ask(prompt=LONG, max_tokens=10_000, n=1, stop_token_ids=[])
    assert len(answer.json()["completions"][0]["tokens"]) == 512 - 300


def test_it_refuses_with_reasons(server: Server) -> None:
    cases = [
        (401, server.ask(token="wrong"), "Authorization: Bearer"),
        (400, server.ask(n=0), "`n`: Input should be greater than or equal to 1; send for example"),
        (400, server.ask(top_p=0.9), "`top_p`: Extra inputs are not permitted"),
        (400, server.ask(stop_token_ids=[2] * 257), "`stop_token_ids`: Tuple should have at most 256 items"),
        (400, server.ask(prompt=[1, 10**6]), "`prompt` holds ids outside 0.."),
        (400, server.ask(prompt=[1] * 512), "has 512 tokens, which leaves none of 512 (training.maxLength)"),
        (409, server.ask(versions=[900, 901]), "asked were 900 to 901; ask another, or wait"),
    ]
    for code, answer, reason in cases:
        assert answer.status_code == code
        assert reason in answer.json()["error"]


def test_new_weights_are_the_models_and_the_prefix_cache_goes_with_the_old(server: Server, model: LoadedModel) -> None:
    """Both requests share 300 tokens, whose keys and values the server would like to keep."""
    with trainee(server.job, next(server.attempts)) as publisher:
        publisher.publish(0, weights_of(model).items())
        _wait_for(publisher, lambda known: known.attempt == publisher.attempt)
        assert _agrees(model, LONG, server.ask(prompt=LONG))
        move(model, seed=1)
        publisher.publish(17, weights_of(model).items())
        _wait_for(publisher, lambda known: known.version == 17)
        answer = server.ask(prompt=LONG)
        assert answer.json()["version"] == 17
        assert _agrees(model, LONG, answer)
        assert server.ask(versions=[0, 16]).json()["version"] == 17
        assert list((server.job.folder / "scratch").glob("fetched-*")) == []


def test_a_new_attempt_counts_more_than_a_higher_version(server: Server, model: LoadedModel) -> None:
    with trainee(server.job, next(server.attempts)) as former:
        former.publish(30, weights_of(model).items())
        _wait_for(former, lambda known: known.version == 30)
    move(model, seed=2)
    with trainee(server.job, next(server.attempts)) as current:
        current.publish(20, weights_of(model).items())
        _wait_for(current, lambda known: (known.attempt, known.version) == (current.attempt, 20))
        assert _agrees(model, (5, 6, 7, 8), server.ask(versions=[20, 20]))


def test_weights_that_change_while_it_samples_make_no_completion(server: Server, model: LoadedModel) -> None:
    with trainee(server.job, next(server.attempts)) as publisher, ThreadPoolExecutor() as pool:
        publisher.publish(1, weights_of(model).items())
        _wait_for(publisher, lambda known: (known.attempt, known.version) == (publisher.attempt, 1))
        asked = pool.submit(server.ask, versions=[1, 2], n=512, max_tokens=500, stop_token_ids=[])
        publisher.publish(2, weights_of(model).items())
        assert asked.result().status_code == 409
        assert asked.result().json()["version"] == 2
        assert server.ask(versions=[2, 2]).status_code == 200


def test_weights_of_another_model_are_refused_and_the_old_ones_serve_on(server: Server, model: LoadedModel) -> None:
    with trainee(server.job, next(server.attempts)) as publisher:
        publisher.publish(1, weights_of(model).items())
        _wait_for(publisher, lambda known: (known.attempt, known.version) == (publisher.attempt, 1))
        wrong = dict(weights_of(model)) | {"model.norm.weight": torch.zeros(65)}
        publisher.publish(2, wrong.items())
        reason = "tensor `model.norm.weight` is float32 [65], not float32 [64]"
        _wait_for(publisher, lambda known: known.error is not None and reason in known.error)
        assert reason in server.state()
        assert _agrees(model, (5, 6, 7, 8), server.ask(versions=[1, 1]))
        move(model, seed=3)
        publisher.publish(3, weights_of(model).items())
        _wait_for(publisher, lambda known: known.version == 3 and known.error is None)
        assert _agrees(model, (5, 6, 7, 8), server.ask(versions=[3, 3]))


def test_asked_to_go_it_leaves_no_process_behind(server: Server) -> None:
    family = psutil.Process(server.process.pid).children(recursive=True)
    assert len(family) >= 2
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(server.ask, n=512, max_tokens=500, stop_token_ids=[])
        wait_until(lambda: server.process.poll() is None)
        server.process.send_signal(signal.SIGTERM)
        assert asked.result().status_code == 503
    assert server.process.wait(900) == 143
    assert server.job.outcome("rollout").result == "interrupted"
    wait_until(lambda: not any(process.is_running() for process in family))


def test_killed_while_it_loads_it_takes_its_engine_along(job: TinyJob) -> None:
    process = job.start("rollout", name="rollout-killed")
    try:
        wait_until(lambda: any("VLLM::" in name for name in _family(process.pid).values()), START_SECONDS)
        family = _family(process.pid)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(900)
    _, alive = psutil.wait_procs(family, timeout=300)
    assert not alive


def _family(pid: int) -> dict[psutil.Process, str]:
    """All processes below this one, with their command lines."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            found[process] = " ".join(process.cmdline())
    return found
