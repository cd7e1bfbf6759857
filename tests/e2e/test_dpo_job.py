"""kubectl apply of a DPO job on a cluster with on-demand and spot nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.jobs import Jobs, dpo_job
from transformers import AutoModelForCausalLM

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

COLUMNS = ["NAME", "ALGORITHM", "STAGE", "PHASE", "PROGRESS", "ETA", "READY", "AGE"]


def test_a_job_goes_from_manifest_to_a_better_model(jobs: Jobs, work: Path) -> None:
    job = dpo_job("whole")
    job["spec"]["roles"]["policy"] = job["spec"]["roles"]["policy"] | {"processes": 2}
    with jobs.watching("whole") as history:
        jobs.apply(job)
        jobs.wait("whole", "a first optimizer step", _trains)
        head, row = jobs.rig.kubectl("get", "aj", "whole", "-n", jobs.namespace).splitlines()
        families = _scrape(jobs, history.of("policy")[0].name)
        status = jobs.wait_complete("whole")

    assert head.split() == COLUMNS
    assert row.split()[:4] == ["whole", "dpo", "train", "Running"]
    assert families["alignment_loss"] > 0
    assert {life.node for life in history.of("policy") + history.of("prepare")} == {"ondemand-0"}
    assert {life.node.split("-")[0] for life in history.of("reference") + history.of("evaluator")} == {"spot"}
    assert [len(history.of(role)) for role in ("prepare", "reference", "policy", "evaluator")] == [1, 1, 1, 1]
    assert history.doubled() == []
    _assert_better_on_held_out_pairs(status)
    assert AutoModelForCausalLM.from_pretrained(work / "whole-out" / "model").config.hidden_size == 64


def test_suspending_saves_and_removes_the_pods_and_resuming_goes_on(jobs: Jobs, work: Path) -> None:
    jobs.apply(dpo_job("pause"))
    jobs.wait("pause", "a first optimizer step", _trains)
    with jobs.watching("pause") as history:
        _suspend(jobs, "pause", True)
        status = jobs.wait("pause", "suspension", lambda status: status.get("phase") == "Suspended")
        jobs.await_gone("pause", "pods", keep=0)  # they have ended; their objects go next
        saved = status["checkpoint"]["step"]
        _suspend(jobs, "pause", False)
        status = jobs.wait_complete("pause")
    assert saved > 0
    claim = json.loads((work / "pause" / "claims" / "0002.json").read_text())
    assert claim["start"] == {"term": 1, "step": saved, "updates": 0}
    assert [life.life for life in history.of("policy")] == [1, 2]
    assert all(role["failures"] == role["disruptions"] == 0 for role in status["roles"])


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
