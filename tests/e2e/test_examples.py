"""examples/dpo.yaml as it stands, by kubectl: with a small random model, and with the real one of 135M parameters."""

from __future__ import annotations

from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.e2e.jobs import Jobs
from tests.rig import EXAMPLE, make_example_claims
from tests.tiny import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_the_example_runs_as_it_stands(jobs: Jobs) -> None:
    user = _user(jobs, "small", make_model=write_model)
    user.rig.kubectl("apply", "-n", "small", "-f", str(EXAMPLE))
    status = user.wait_complete("helpful-dpo")
    assert status["evaluation"]["before"]["accuracy"]["value"] == 0.5
    assert status["artifacts"]["model"].startswith("pvc://")


def test_the_real_model_beats_its_base_on_held_out_pairs(jobs: Jobs) -> None:
    user = _user(jobs, "real")
    job: dict[str, Any] = YAML(typ="safe").load(EXAMPLE)
    job["metadata"]["namespace"] = "real"
    job["spec"]["training"] |= {"maxSteps": 10, "gradientCheckpointing": False}
    user.apply(job)
    status = user.wait_complete("helpful-dpo", timeout=600)
    before, after = (status["evaluation"][moment]["accuracy"] for moment in ("before", "after"))
    assert status["model"]["parameters"] == 134_515_008
    assert before["value"] == 0.5
    assert after["low"] > 0.5


def _user(jobs: Jobs, namespace: str, **model: Any) -> Jobs:
    """A namespace with what the example reads."""
    jobs.rig.kubectl("create", "namespace", namespace)
    make_example_claims(jobs.rig, namespace, **model)
    return Jobs(jobs.rig, namespace)
