"""examples/dpo.yaml as it stands, by kubectl: with a small random model, and with the real one of 135M parameters."""

from __future__ import annotations

from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.e2e.jobs import Jobs
from tests.rig import EXAMPLE, make_example_claims
from tests.tiny import write_model

from alignment_trainer.model.precision import cpu_has_bf16

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

NAME = "helpful-dpo"


@pytest.fixture(scope="module")
def example(jobs: Jobs) -> tuple[Jobs, dict[str, Any]]:
    """The example with a small model, once it is complete."""
    user = _user(jobs, "small", make_model=write_model)
    user.rig.kubectl("apply", "-n", "small", "-f", str(EXAMPLE))
    return user, user.wait_complete(NAME)


def test_the_example_runs_as_it_stands(example: tuple[Jobs, dict[str, Any]]) -> None:
    _, status = example
    assert status["evaluation"]["before"]["accuracy"]["value"] == 0.5
    assert status["artifacts"]["model"].startswith("pvc://")
    assert status["precision"]["value"] == ("bf16" if cpu_has_bf16() else "fp32")
    assert "the CPU of `prepare`" in status["precision"]["why"]


def test_completion_and_deletion_leave_what_the_user_owns(example: tuple[Jobs, dict[str, Any]]) -> None:
    """The example names neither storage nor output, so that the operator makes both."""
    user, status = example
    user.await_gone(NAME, "pods,configmaps,secrets,services,networkpolicies", keep=0)
    assert len(user.objects(NAME, "persistentvolumeclaims")) == 2
    user.delete(NAME)
    (left,) = user.await_gone(NAME, "persistentvolumeclaims", keep=1)
    assert left.removeprefix("persistentvolumeclaim/") in status["artifacts"]["model"]


def test_the_real_model_beats_its_base_on_held_out_pairs(jobs: Jobs) -> None:
    """Few and short rows: a billion operations a token are 2 minutes on two old cores in fp32."""
    user = _user(jobs, "real", shortest={"train.jsonl": 48, "heldout.jsonl": 24})
    job: dict[str, Any] = YAML(typ="safe").load(EXAMPLE)
    job["metadata"]["namespace"] = "real"
    job["spec"]["training"] |= {
        "batchSize": 8,
        "learningRate": 2.0e-5,
        "maxLength": 128,
        "recomputeLayers": 0,
    }
    user.apply(job)
    status = user.wait_complete(NAME)
    before, after = (status["evaluation"][moment]["accuracy"] for moment in ("before", "after"))
    assert status["model"]["parameters"] == 134_515_008
    assert before["value"] == 0.5
    assert after["low"] > 0.5


def _user(jobs: Jobs, namespace: str, **what: Any) -> Jobs:
    """A namespace with what the example reads."""
    jobs.rig.kubectl("create", "namespace", namespace)
    make_example_claims(jobs.rig, namespace, **what)
    return Jobs(jobs.rig, namespace)
