"""kubectl apply of a DPO job on a cluster with on-demand and spot nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.jobs import CHECKPOINT_EVERY, Jobs, checkpoint, condition, dpo_job
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

COLUMNS = ["NAME", "ALGORITHM", "STAGE", "PHASE", "PROGRESS", "ETA", "READY", "AGE"]


def test_a_job_goes_to_a_better_model_though_its_operator_is_killed_at_five_moments(jobs: Jobs, work: Path) -> None:
    """Two ranks train. Nothing is doubled and nothing restarts."""
    name, job = "whole", dpo_job("whole")
    job["spec"]["roles"]["policy"] = job["spec"]["roles"]["policy"] | {"processes": 2}
    with jobs.watching(name) as history:
        jobs.apply(job)
        jobs.kill_operator()  # before or while it sees the job
        jobs.wait(name, "its stage prepare", lambda status: status.get("stage") == "prepare")
        jobs.kill_operator()
        jobs.wait(name, "good data", lambda status: condition(status, "DataReady") == "True")
        jobs.kill_operator()
        jobs.wait(name, "a first optimizer step", _trains)
        head, row = jobs.rig.kubectl("get", "aj", name, "-n", jobs.namespace).splitlines()
        families = _scrape(jobs, history.of("policy")[0].name)
        jobs.wait(name, "a checkpoint", lambda status: checkpoint(status) >= CHECKPOINT_EVERY)
        jobs.kill_operator()
        jobs.wait(name, "its stage evaluate", lambda status: status.get("stage") == "evaluate")
        jobs.kill_operator()
        status = jobs.wait_complete(name)

    assert head.split() == COLUMNS
    assert row.split()[:4] == [name, "dpo", "train", "Running"]
    assert families["alignment_loss"] > 0
    assert {life.node for life in history.of("policy") + history.of("prepare")} == {"ondemand-0"}
    assert {life.node.split("-")[0] for life in history.of("reference") + history.of("evaluator")} == {"spot"}
    assert [len(history.of(role)) for role in ("prepare", "reference", "policy", "evaluator")] == [1, 1, 1, 1]
    assert history.doubled() == []
    assert status["attempt"] == 1
    _assert_better_on_held_out_pairs(status)
    assert AutoModelForCausalLM.from_pretrained(work / f"{name}-out" / "model").config.hidden_size == 64


def test_a_policy_that_is_suspended_and_then_killed_goes_on_from_its_checkpoints(jobs: Jobs, work: Path) -> None:
    """Suspending saves, removes the pods and counts as nothing; being killed counts as a failure."""
    name = "resumed"
    with jobs.watching(name) as history:
        jobs.apply(dpo_job(name))
        jobs.wait(name, "a first optimizer step", _trains)
        _suspend(jobs, name, True)
        status = jobs.wait(name, "suspension", lambda status: status.get("phase") == "Suspended")
        jobs.await_gone(name, "pods", keep=0)  # they have ended; their objects go next
        saved = status["checkpoint"]["step"]
        assert all(role["failures"] == role["disruptions"] == 0 for role in status["roles"])
        _suspend(jobs, name, False)
        later = saved + CHECKPOINT_EVERY
        jobs.wait(name, "a checkpoint of its second life", lambda status: checkpoint(status) >= later)
        jobs.rig.kill_container(history.of("policy")[1].name, jobs.namespace)
        status = jobs.wait_complete(name)
    assert saved > 0
    second, third = (_start(work / name, attempt) for attempt in (2, 3))
    assert second == {"term": 1, "step": saved, "updates": 0}
    assert third["term"] == 2
    assert third["step"] >= later
    assert [life.life for life in history.of("policy")] == [1, 2, 3]
    assert [len(history.of(role)) for role in ("prepare", "reference", "evaluator")] == [1, 1, 1]
    assert history.doubled() == []
    counted = {role["name"]: (role["failures"], role["disruptions"]) for role in status["roles"]}
    assert counted == {"prepare": (0, 0), "reference": (0, 0), "policy": (1, 0), "evaluator": (0, 0)}
    assert status["attempt"] == 3


def _start(storage: Path, attempt: int) -> dict[str, Any]:
    """What an attempt started from, by its claim."""
    start: dict[str, Any] = json.loads((storage / "claims" / f"{attempt:04d}.json").read_text())["start"]
    return start


def _suspend(jobs: Jobs, name: str, value: bool) -> None:
    patch = f'{{"spec": {{"suspend": {str(value).lower()}}}}}'
    jobs.rig.kubectl("patch", "aj", name, "-n", jobs.namespace, "--type=merge", "-p", patch)


def _trains(status: dict[str, Any]) -> bool:
    return status.get("stage") == "train" and (status.get("progress") or {}).get("step", 0) > 0


def _scrape(jobs: Jobs, pod: str) -> dict[str, float]:
    """/metrics of a pod, read by Prometheus' own parser; the first sample of each family."""
    text = jobs.rig.kubectl("get", "--raw", f"/api/v1/namespaces/{jobs.namespace}/pods/{pod}:8000/proxy/metrics")
    return {family.name: family.samples[0].value for family in text_string_to_metric_families(text) if family.samples}


def _assert_better_on_held_out_pairs(status: dict[str, Any]) -> None:
    before, after = (status["evaluation"][moment]["accuracy"] for moment in ("before", "after"))
    assert before["value"] == 0.5
    assert after["low"] > 0.5
