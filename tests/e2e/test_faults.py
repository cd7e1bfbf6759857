"""Faults on a real cluster: the job completes, no pod is doubled, and only what must restarts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.jobs import CHECKPOINT_EVERY, OPERATOR_NAMESPACE, Jobs, PodHistory, dpo_job

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]


def test_an_operator_killed_at_five_moments_doubles_nothing_and_restarts_nothing(jobs: Jobs) -> None:
    name = "orphan"
    with jobs.watching(name) as history:
        jobs.apply(dpo_job(name))
        _kill_operator(jobs)  # before or while it sees the job
        jobs.wait(name, "its stage prepare", lambda status: status.get("stage") == "prepare")
        _kill_operator(jobs)
        jobs.wait(name, "good data", lambda status: _condition(status, "DataReady") == "True")
        _kill_operator(jobs)
        jobs.wait(name, "a checkpoint", lambda status: _checkpoint(status) >= CHECKPOINT_EVERY)
        _kill_operator(jobs)
        jobs.wait(name, "its stage evaluate", lambda status: status.get("stage") == "evaluate")
        _kill_operator(jobs)
        status = jobs.wait_complete(name)
    assert history.doubled() == []
    assert [len(history.of(role)) for role in ("prepare", "reference", "policy", "evaluator")] == [1, 1, 1, 1]
    assert status["attempt"] == 1


def test_a_spot_node_lost_with_its_reference_restarts_no_other_role(jobs: Jobs, spot_nodes: None) -> None:
    name = "reclaimed"
    with jobs.watching(name) as history:
        jobs.apply(dpo_job(name))
        jobs.wait(name, "a running reference", lambda status: _runs_on_node(jobs, name, history, "reference"))
        jobs.rig.node(history.of("reference")[0].node).lose()
        status = jobs.wait_complete(name)
    first, second = history.of("reference")
    assert {first.node, second.node} == {"spot-0", "spot-1"}
    assert [len(history.of(role)) for role in ("prepare", "policy", "evaluator")] == [1, 1, 1]
    assert _role(status, "reference")["disruptions"] == 1
    assert _role(status, "reference")["failures"] == 0
    assert history.doubled() == []


def test_a_policy_killed_after_its_second_checkpoint_goes_on_from_it(jobs: Jobs, work: Path) -> None:
    name = "resumed"
    with jobs.watching(name) as history:
        jobs.apply(dpo_job(name))
        jobs.wait(name, "a second checkpoint", lambda status: _checkpoint(status) >= 2 * CHECKPOINT_EVERY)
        jobs.rig.kill_container(history.of("policy")[0].name, jobs.namespace)
        status = jobs.wait_complete(name)
    assert [life.life for life in history.of("policy")] == [1, 2]
    assert [len(history.of(role)) for role in ("prepare", "reference", "evaluator")] == [1, 1, 1]
    assert history.doubled() == []
    claim = json.loads((work / name / "claims" / "0002.json").read_text())
    assert claim["start"]["term"] == 1
    assert claim["start"]["step"] >= 2 * CHECKPOINT_EVERY
    assert _role(status, "policy")["failures"] == 1
    assert status["attempt"] == 2


@pytest.fixture
def spot_nodes(jobs: Jobs) -> Iterator[None]:
    """Gives back the spot nodes that a test takes away."""
    yield
    for name in ("spot-0", "spot-1"):
        jobs.rig.node(name).start()
    jobs.rig.await_ready("spot-0", "spot-1")


def _kill_operator(jobs: Jobs) -> None:
    """SIGKILL, then a fresh pod: a restarted container would wait for kubelet's growing back-off."""
    (pod,) = [
        pod["metadata"]["name"]
        for pod in jobs.rig.get("pods", "-n", OPERATOR_NAMESPACE)["items"]
        if "deletionTimestamp" not in pod["metadata"]
    ]
    jobs.rig.kill_container(pod, OPERATOR_NAMESPACE)
    jobs.rig.kubectl("delete", "pod", pod, "-n", OPERATOR_NAMESPACE, "--wait=true")
    jobs.rig.kubectl("rollout", "status", "deployment", "-n", OPERATOR_NAMESPACE, "--timeout=240s")


def _runs_on_node(jobs: Jobs, name: str, history: PodHistory, role: str) -> bool:
    for pod in jobs.pods(name):
        history.record(pod)
    running = {pod["metadata"]["name"] for pod in jobs.pods(name) if pod["status"].get("phase") == "Running"}
    return any(life.name in running for life in history.of(role))


def _condition(status: dict[str, Any], kind: str) -> str | None:
    return next((c["status"] for c in status.get("conditions", ()) if c["type"] == kind), None)


def _checkpoint(status: dict[str, Any]) -> int:
    return int((status.get("checkpoint") or {}).get("step", 0))


def _role(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next(role for role in status["roles"] if role["name"] == name)
