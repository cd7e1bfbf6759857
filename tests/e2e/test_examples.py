"""examples/dpo.yaml as it stands, by kubectl: with a small random model, and with the real one of 135M parameters."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.e2e.jobs import Jobs
from tests.tiny import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "examples" / "dpo.yaml"
MODEL = "SmolLM2-135M-Instruct"


def test_the_example_runs_as_it_stands(jobs: Jobs) -> None:
    user = _user(jobs, "small", lambda folder: write_model(folder))
    user.rig.kubectl("apply", "-n", "small", "-f", str(EXAMPLE))
    status = user.wait_complete("helpful-dpo")
    assert status["evaluation"]["before"]["accuracy"]["value"] == 0.5
    assert status["artifacts"]["model"].startswith("pvc://")


def test_the_real_model_beats_its_base_on_held_out_pairs(jobs: Jobs) -> None:
    user = _user(jobs, "real", _fetch)
    job: dict[str, Any] = YAML(typ="safe").load(EXAMPLE)
    job["metadata"]["namespace"] = "real"
    job["spec"]["training"] |= {"maxSteps": 10, "gradientCheckpointing": False}
    user.apply(job)
    status = user.wait_complete("helpful-dpo", timeout=600)
    before, after = (status["evaluation"][moment]["accuracy"] for moment in ("before", "after"))
    assert status["model"]["parameters"] == 134_515_008
    assert before["value"] == 0.5
    assert after["low"] > 0.5


def _user(jobs: Jobs, namespace: str, make_model: Any) -> Jobs:
    """A namespace with the claims that the example names."""
    jobs.rig.kubectl("create", "namespace", namespace)
    folder = jobs.rig.shared_volume("models", namespace) / MODEL
    make_model(folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    data = jobs.rig.shared_volume("data", namespace)
    for name in ("train.jsonl", "heldout.jsonl"):
        shutil.copy(REPOSITORY / "examples" / "quickstart" / name, data)
    return Jobs(jobs.rig, namespace)


def _fetch(folder: Path) -> None:
    subprocess.run([sys.executable, REPOSITORY / "examples" / "fetch_model.py"], check=True, capture_output=True)
    shutil.copytree(REPOSITORY / "build" / "models" / MODEL, folder)
