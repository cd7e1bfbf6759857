"""What a reward function is given and what it may take: foreign code on text that a model makes up."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignment_api.contract.rewards import Reward
from alignment_trainer.process.errors import UserError
from alignment_trainer.rewards import Answer, FunctionScorer, check_functions
from alignment_trainer.rewards.scorer import LOST_OF

FIELD = "spec.algorithm.grpo"
HERE = f"{FIELD}.rewards[0].function"
SOURCE = "pvc://code/judges"
JUDGES = """
import json, mmap, os, resource, socket
def surroundings(completion, row):
    seen = {"environment": dict(os.environ), "cores": resource.getrlimit(resource.RLIMIT_CORE)}
    seen["raised"] = False
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        seen["raised"] = True
    with open(row["file"], "w") as file:
        json.dump(seen, file)
    return 1.0
def large(completion, row):
    return len(bytearray(4 * 2**30)) if completion == "large" else 1.0
def large_at_once(completion, row):  # untouched, so that it takes no time
    return len(mmap.mmap(-1, 4 * 2**30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
def as_torch_says(completion, row):
    if completion == "large":
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
    return 1.0
def calls(completion, row):
    socket.create_connection(("127.0.0.1", row["port"]), timeout=60).close()
    return 1.0
def spies(completion, row):
    with open(f"/proc/{os.getppid()}/environ", "rb") as file:
        return float(b"ALIGNMENT_SECRET" in file.read())
"""
Make = Callable[..., tuple[tuple[Reward, ...], dict[str, str]]]


@pytest.fixture
def python(tmp_path: Path) -> Make:
    (tmp_path / "judges.py").write_text(JUDGES)
    (tmp_path / "greedy.py").write_text("held = bytearray(4 * 2**30)\ndef score(completion, row):\n    return 1.0\n")

    def make(name: str, module: str = "judges", **options: Any) -> tuple[tuple[Reward, ...], dict[str, str]]:
        entry = {"entrypoint": f"{module}:{name}", "path": SOURCE, **options}
        return (Reward.model_validate({"name": "r", "function": {"python": entry}}),), {SOURCE: str(tmp_path)}

    return make


def score(functions: tuple[tuple[Reward, ...], dict[str, str]], *items: Answer) -> list[float]:
    with FunctionScorer(*functions, FIELD) as scorer:
        return scorer.score(items)["r"]


def refused(functions: tuple[tuple[Reward, ...], dict[str, str]], row: dict[str, Any] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        check_functions(*functions, FIELD, [row or {}])
    return str(caught.value)


def test_a_function_is_given_neither_credentials_nor_the_context_and_leaves_no_core(
    python: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = {
        "HF_TOKEN": "hf_abc",
        "AWS_SECRET_ACCESS_KEY": "key",
        "ALIGNMENT_CONTEXT": '{"tokenFile": "/etc/alignment-token/token"}',
        "https_proxy": "http://me:word@proxy:3128",
    }
    for name, value in (secret | {"ALIGNMENT_LIFE": "run/actor-0"}).items():
        monkeypatch.setenv(name, value)
    assert score(python("surroundings"), Answer("", 1, {"file": str(tmp_path / "seen.json")})) == [1.0]
    seen = json.loads((tmp_path / "seen.json").read_text())
    given = seen["environment"]
    assert not secret.keys() & given.keys()
    assert not any(value in text for value in secret.values() for text in given.values())
    assert given["PATH"] == os.environ["PATH"]
    assert given["ALIGNMENT_LIFE"] == "run/actor-0", "what a killed run leaves is found by it"
    assert seen["cores"] == [0, 0]
    assert seen["raised"] or os.geteuid() == 0, "its limit stays, unless it is root where the kernel keeps it"


@pytest.mark.parametrize("name", ["large", "as_torch_says"])
def test_a_completion_that_takes_too_much_memory_scores_nothing_and_the_rest_is_scored(
    python: Make, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    items = [Answer(text, 1, {}) for text in ("good", "large", "good", "large", "good")]
    with FunctionScorer(*python(name), FIELD) as scorer:
        assert scorer.score(items)["r"] == [1.0, 0.0, 1.0, 0.0, 1.0]
        assert scorer.timeouts == 2
    assert f"{HERE}.python.entrypoint: it took more memory than its process may have, 3 GiB (judges.py:" in caplog.text


def test_a_function_that_takes_too_much_in_its_trial_is_refused_with_the_limit_and_the_option(python: Make) -> None:
    message = refused(python("large_at_once"))
    assert message.startswith(f"{HERE}.python.entrypoint: it took more memory than its process may have, 3 GiB")
    assert message.endswith(f"in its trial; take less, or write a larger {HERE}.python.memory (2Gi)")
    check_functions(*python("large_at_once", memory="5Gi"), FIELD, [{}])


def test_a_module_that_takes_too_much_is_refused(python: Make) -> None:
    message = refused(python("score", module="greedy"))
    assert message.startswith(f"{HERE}.python.entrypoint: importing `greedy` takes more memory")
    assert message.endswith("write a larger `memory` beside it")


def test_a_function_that_takes_too_much_most_of_the_time_ends_the_attempt_with_the_option(python: Make) -> None:
    items = [Answer("good", 1, {}), *(Answer("large", 1, {}) for _ in range(LOST_OF // 2 + 1))]
    with pytest.raises(UserError) as caught:
        score(python("large"), *items)
    assert str(caught.value).endswith(f"take less, or write a larger {HERE}.python.memory (2Gi)")


def raised_by(functions: tuple[tuple[Reward, ...], dict[str, str]], item: Answer) -> str:
    """What is told of its call; empty where it scores."""
    try:
        score(functions, item)
    except UserError as error:
        return str(error)
    return ""


@contextmanager
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_function_has_no_network_unless_it_asks_for_it_or_the_kernel_keeps_it_there(
    python: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with listener() as port:
        assert score(python("calls", network=True), Answer("", 1, {"port": port})) == [1.0]
        assert "network" not in caplog.text
        problem = raised_by(python("calls"), Answer("", 1, {"port": port}))
    if "reward functions keep the network: the kernel takes it from no process here (" in caplog.text:
        assert problem == ""
    else:
        assert "Network is unreachable (socket.py:" in problem
        assert "a function has no network unless `network: true` stands beside its entrypoint" in problem


def test_the_trial_says_whether_functions_keep_a_network_that_they_should_not_have(
    python: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert check_functions(*python("spies", network=True), FIELD) is None
    assert "network" not in caplog.text
    kept = check_functions(*python("spies"), FIELD)
    assert (kept is not None) == ("reward functions keep the network" in caplog.text)
    assert kept is None or f"({kept})" in caplog.text


def test_a_function_without_network_cannot_read_the_trainers_environment(
    python: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    problem = raised_by(python("spies"), Answer("", 1, {}))
    assert ("raised PermissionError" in problem) != ("reward functions keep the network" in caplog.text)


@pytest.mark.parametrize("wrong", [{"memory": "0"}, {"memory": "much"}, {"network": "maybe"}])
def test_limits_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Reward.model_validate({"function": {"python": {"entrypoint": "mine:score", **wrong}}})
