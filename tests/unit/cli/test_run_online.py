"""`alignctl run` of PPO and GRPO on a tiny model: every role a process, vLLM for the rollouts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.graphs import EXECUTES, Graphs, watching
from tests.tiny import write_model, write_pairs

from alignment_api.contract.status import EvaluationReport
from alignment_trainer.checkpoint.claims import newest_unverified
from alignment_trainer.data.storage import Folder
from alignment_trainer.experience.record import read_rollouts

ROOT = Path(__file__).parents[3]
STEPS, PROMPTS = 3, 4
SHARED = {"promptsPerRollout": PROMPTS, "maxNewTokens": 12}
REWARDS = [{"weight": 0.0, "name": "kind", "function": {"regex": {"pattern": "Gladly|Sure|course"}}}]


def manifest(name: str, algorithm: dict[str, Any], **training: Any) -> dict[str, Any]:
    return {
        "apiVersion": "alignment.run/v1alpha1",
        "kind": "AlignmentJob",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "file://./model"},
            "data": {"source": "file://./pairs.jsonl", "evaluation": {"fraction": 0.05}},
            "algorithm": algorithm,
            "training": {
                "batchSize": 4,
                "learningRate": 1e-4,
                "maxLength": 128,
                "precision": "fp32",
                "maxSteps": STEPS,
            }
            | training,
            "roles": {"rollout": {"kvCacheMemory": "64Mi"}},
            "checkpoint": {"everySteps": 1, "keep": 9},
        },
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_model(home / "model")
    write_pairs(home / "pairs.jsonl", 500)
    return home


def run(home: Path, job: dict[str, Any], program: tuple[str, ...] = ("-m", "alignment_cli.main")) -> tuple[str, Path]:
    """What `alignctl run` printed, and its folder. Nothing that it started outlives it."""
    name = job["metadata"]["name"]
    (home / f"{name}.yaml").write_text(json.dumps(job))
    path = ":".join([str(ROOT / "operator"), str(ROOT / "trainer")])
    done = subprocess.run(
        [sys.executable, *program, "run", f"{name}.yaml"],
        cwd=home,
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=1150,
        check=False,
    )
    folder = home / "runs" / name
    logs = "".join(f"\n--- {log.name}\n{log.read_text()[-3000:]}" for log in sorted((folder / "logs").glob("*.log")))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline", "cwd"]) if p.info["cwd"] == str(home)]
    assert left == []
    return done.stdout, folder


@pytest.fixture(scope="module")
def ppo(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Graphs]:
    preferences = {"source": "file://./pairs.jsonl", "evaluation": {"fraction": 0.45}}
    trained = {"train": {"preferences": preferences, "learningRate": 1e-3, "batchSize": 16}}
    critic = {"learningRate": 1e-3, "warmupSteps": 0}
    ppo = SHARED | {"completionsPerPrompt": 2, "epochsPerRollout": 2, "critic": critic, "rewards": [trained, *REWARDS]}
    with watching("online", tmp_path_factory.mktemp("prometheus")) as graphs:
        printed, folder = run(home, manifest("ppo", {"ppo": ppo}), program=("-c", EXECUTES))
    return printed, folder, graphs


def test_every_query_of_its_dashboard_returns_data(ppo: tuple[str, Path, Graphs]) -> None:
    graphs = ppo[2]
    if graphs.unavailable:
        pytest.skip(graphs.unavailable)
    assert graphs.empty == []
    assert {*("prepare", "policy", "evaluator"), *("actor", "critic", "reward", "rollout", "reference")} <= graphs.roles


def test_ppo_trains_its_reward_model_first_and_both_are_told_of(ppo: tuple[str, Path, Graphs]) -> None:
    printed, folder, _ = ppo
    status = json.loads((folder / "status.json").read_text())
    assert [stage["name"] for stage in status["stages"]] == ["prepare", "reward", "train", "evaluate"]
    assert status["stages"][1]["evaluation"]["after"]["accuracy"]["low"] > 0.5
    report = EvaluationReport.model_validate_json((folder / "evaluation.json").read_text())
    assert set(report.after) == {"reward", "reward/trained", "reward/kind", "length", "finished", "kl"}
    assert report.before["kl"].value == pytest.approx(0, abs=1e-4)
    assert "reward" in printed
    records = read_rollouts(Folder(folder))
    assert [(record.step, len(record.rows), record.versions) for record in records] == [
        (step, PROMPTS, (step - 1,)) for step in range(1, STEPS + 1)
    ]
    newest = newest_unverified(Folder(folder), "this run")
    assert newest.step == STEPS
    assert {"state", "critic"} <= {part.name.split("-")[0] for part in newest.parts}
    # Where a slow machine cost an attempt, the status says so.
    lost = [role["failures"] + role["disruptions"] for role in status["roles"] if role["name"] in {"actor", "critic"}]
    assert newest.term <= 1 + sum(lost)


def test_grpo_needs_neither_critic_nor_reward_server(home: Path) -> None:
    rewards = [
        {"function": {"regex": {"pattern": "[aeiou]"}}},
        {"weight": 0.1, "function": {"length": {"maxTokens": 8}}},
    ]
    grpo = SHARED | {"groupSize": 4, "rewards": rewards}
    _, folder = run(home, manifest("grpo", {"grpo": grpo}))
    status = json.loads((folder / "status.json").read_text())
    assert [stage["name"] for stage in status["stages"]] == ["prepare", "train", "evaluate"]
    assert {role["name"] for role in status["roles"]} == {"prepare", "actor", "reference", "rollout", "evaluator"}
    assert len(read_rollouts(Folder(folder))) == STEPS
    report = EvaluationReport.model_validate_json((folder / "evaluation.json").read_text())
    assert {"reward/regex", "reward/length"} <= set(report.after)
