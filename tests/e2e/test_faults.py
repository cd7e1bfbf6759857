"""Faults on a real cluster: the job completes, no pod is doubled, and only what must restarts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.jobs import Jobs, PodHistory, dpo_job

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]


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


@pytest.fixture
def spot_nodes(jobs: Jobs) -> Iterator[None]:
    """Gives back the spot nodes that a test takes away."""
    yield
    for name in ("spot-0", "spot-1"):
        jobs.rig.node(name).start()
    jobs.rig.await_ready("spot-0", "spot-1")


def _runs_on_node(jobs: Jobs, name: str, history: PodHistory, role: str) -> bool:
    for pod in jobs.pods(name):
        history.record(pod)
    running = {pod["metadata"]["name"] for pod in jobs.pods(name) if pod["status"].get("phase") == "Running"}
    return any(life.name in running for life in history.of(role))


def _role(status: dict[str, Any], name: str) -> dict[str, Any]:
    return next(role for role in status["roles"] if role["name"] == name)
