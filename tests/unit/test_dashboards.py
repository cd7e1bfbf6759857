"""Every graph of the dashboards shows something, in a real Prometheus that scraped a real job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client import start_http_server
from tests.prometheus import Prometheus
from tests.rig.paths import RigUnavailable
from tests.tiny import write_model, write_pairs

from alignment_api.context import CONTEXT_VARIABLE, Context
from alignment_operator.kube.telemetry import Telemetry
from alignment_operator.plan.types import JobKey

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "charts" / "alignment-operator" / "dashboards"
PREFERENCES = {"source": "file://./pairs.jsonl", "evaluation": {"fraction": 0.45}}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "dpo": {"dpo": {}},
    "online": {
        "ppo": {
            "promptsPerRollout": 4,
            "completionsPerPrompt": 2,
            "maxNewTokens": 12,
            "epochsPerRollout": 2,
            "critic": {"learningRate": 1e-3, "warmupSteps": 0},
            "rewards": [
                {"train": {"preferences": PREFERENCES, "learningRate": 1e-3, "batchSize": 16}},
                {"weight": 0.1, "function": {"length": {"maxTokens": 8}}},
            ],
        }
    },
}
STEPS = {"dpo": 40, "online": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_model(home / "model")
    write_pairs(home / "pairs.jsonl", 500)
    return home


@pytest.fixture
def operator_port() -> Iterator[int]:
    """An operator's metrics after a few passes; on a laptop the planner runs without them."""
    telemetry = Telemetry()
    telemetry.saw_phase(JobKey("default", "tiny"), "Running")
    for result in ("done", "error"):
        telemetry.reconcile_seconds.labels(result).observe(0.02)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=telemetry.registry)
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_query_of_a_dashboard_returns_data_of_a_real_job(
    home: Path, tmp_path: Path, operator_port: int, name: str
) -> None:
    command, environment = _alignctl(home, name)
    started: list[subprocess.Popen[bytes]] = []

    def find() -> set[str]:
        return {f"127.0.0.1:{operator_port}"} | {port for process in started for port in _servers(process.pid)}

    try:
        with Prometheus(tmp_path, find).running() as prometheus:
            with (tmp_path / "out").open("wb") as out:
                started.append(subprocess.Popen(command, cwd=home, env=environment, stdout=out, stderr=out))
            assert started[0].wait(900) == 0, (tmp_path / "out").read_text()[-4000:]
            empty = [query for query in _queries(name) if not prometheus.series(query)]
            roles = {line["metric"]["role"] for line in prometheus.series("alignment_resident_memory_bytes")}
    except RigUnavailable as error:
        pytest.skip(str(error))
    finally:
        for process in started:
            process.terminate()
            process.wait()
    assert empty == []
    assert {"prepare", "policy", "evaluator"} <= roles
    assert name == "dpo" or {"actor", "critic", "reward", "rollout", "reference"} <= roles


def _alignctl(home: Path, name: str) -> tuple[list[str], dict[str, str]]:
    spec = {
        "model": {"source": "file://./model"},
        "data": {"source": "file://./pairs.jsonl", "evaluation": {"fraction": 0.1}},
        "algorithm": ALGORITHMS[name],
        "training": {"batchSize": 4, "maxLength": 128, "precision": "fp32", "maxSteps": STEPS[name]},
        "checkpoint": {"everySteps": STEPS[name] // 3},
    }
    if name == "online":
        spec["roles"] = {"rollout": {"kvCacheMemory": "64Mi"}}
    job = {"apiVersion": "alignment.run/v1alpha1", "kind": "AlignmentJob", "metadata": {"name": name}, "spec": spec}
    (home / f"{name}.yaml").write_text(json.dumps(job))
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT / 'trainer'}"}
    return [sys.executable, "-m", "alignment_cli.main", "run", f"{name}.yaml"], environment


def _servers(pid: int) -> Iterator[str]:
    """Where the roles below this process serve their metrics, by what a runtime has told them."""
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    for process in below:
        try:
            told = process.environ().get(CONTEXT_VARIABLE)
        except psutil.Error:
            continue  # it has ended
        if told:
            context = Context.model_validate_json(told)
            yield f"{context.host}:{context.port}"


def _queries(name: str) -> list[str]:
    panels = json.loads((DASHBOARDS / f"{name}.json").read_text())["panels"]
    queries = [target["expr"].replace("$job", ".*") for panel in panels for target in panel["targets"]]
    assert len(queries) > 15
    return queries
