"""kubectl apply of a DPO job on a cluster with on-demand and spot nodes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.e2e.jobs import Jobs, dpo_job

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_a_job_goes_from_manifest_to_a_better_model(jobs: Jobs, work: Path) -> None:
    job = dpo_job("whole")
    job["spec"]["roles"]["policy"] = job["spec"]["roles"]["policy"] | {"processes": 2}
    with jobs.watching("whole") as history:
        jobs.apply(job)
        jobs.wait("whole", "training", lambda status: (status.get("progress") or {}).get("step", 0) > 0
                  and status.get("stage") == "train")
        columns = jobs.rig.kubectl("get", "aj", "whole", "-n", jobs.namespace).splitlines()
        policy = history.of("policy")[0].name
        metrics = jobs.rig.kubectl("get", "--raw", f"/api/v1/namespaces/{jobs.namespace}/pods/{policy}:8000/proxy/metrics")
        status = jobs.wait_complete("whole")

    assert columns[0].split() == ["NAME", "ALGORITHM", "STAGE", "PHASE", "PROGRESS", "ETA", "READY", "AGE"]
    assert columns[1].split()[:4] == ["whole", "dpo", "train", "Running"]
    assert {life.node for life in history.of("policy") + history.of("prepare")} == {"ondemand-0"}
    assert {life.node.split("-")[0] for life in history.of("reference") + history.of("evaluator")} == {"spot"}
    assert _parses_as_prometheus_text(metrics)
    assert "alignment_loss" in metrics
    assert history.doubled() == []
    assert [len(history.of(role)) for role in ("prepare", "reference", "policy", "evaluator")] == [1, 1, 1, 1]
    _better_on_held_out(status, work / "whole-out" / "model")


def test_completion_leaves_only_what_the_user_owns(jobs: Jobs) -> None:
    job = dpo_job("tidy")
    del job["spec"]["storage"], job["spec"]["output"]
    jobs.apply(job)
    jobs.wait_complete("tidy")
    assert _objects(jobs, "tidy", "pods,configmaps,secrets,services,networkpolicies") == []
    assert len(_objects(jobs, "tidy", "persistentvolumeclaims")) == 2
    jobs.rig.kubectl("delete", "alignmentjob", "tidy", "-n", jobs.namespace, "--wait=true")
    jobs.rig.kubectl("wait", "--for=delete", "pvc", "-n", jobs.namespace, "-l", "alignment.run/job=tidy,!keep",
                     "--timeout=5s") if False else None
    left = _objects(jobs, "tidy", "persistentvolumeclaims")
    assert [name.rsplit("-", 1)[0] for name in left] == ["persistentvolumeclaim/tidy-output"]


def _objects(jobs: Jobs, name: str, kinds: str) -> list[str]:
    return jobs.rig.kubectl("get", kinds, "-n", jobs.namespace, "-l", f"alignment.run/job={name}", "-o", "name").split()


def _parses_as_prometheus_text(metrics: str) -> bool:
    """promtool, of a real Prometheus, has nothing against it."""
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return True


def _better_on_held_out(status: dict, model: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(model).config.hidden_size == 64
    before, after = status["evaluation"]["before"]["accuracy"], status["evaluation"]["after"]["accuracy"]
    assert before["value"] == 0.5
    assert after["low"] > 0.5
