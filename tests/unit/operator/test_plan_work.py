"""What a pass does grows with the pods of its job, and no faster. Counted in byte codes: no clock decides."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from tests.unit.operator.small_cluster import SmallCluster, make_job

SMALL = 40
TraceFunction = Callable[[FrameType, str, Any], Any]


def gang(pods: int) -> SmallCluster:
    """One gang in which everything is well."""
    return job_of(pods, {"training": {"batchSize": pods}, "roles": {"policy": {"replicas": pods}}})


def servers(pods: int) -> SmallCluster:
    """As many servers, each with a life of its own."""
    rewards = [{"function": {"numericAnswer": {}}}]
    return job_of(pods, {"algorithm": {"grpo": {"rewards": rewards}}, "roles": {"rollout": {"replicas": pods}}})


def reclaimed(pods: int) -> SmallCluster:
    """All of those are lost at once."""
    cluster = servers(pods)
    for name in cluster.names("rollout"):
        cluster.evict(name)
    return cluster


def job_of(pods: int, spec: dict[str, object]) -> SmallCluster:
    cluster = SmallCluster(make_job(spec))
    cluster.run_until("train")
    cluster.reconcile()
    assert len(cluster.pods) >= pods
    return cluster


def steps(work: Callable[[], object]) -> int:
    """Byte codes of Python that are run."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> TraceFunction:
        nonlocal count
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("history", [gang, servers, reclaimed])
def test_a_pass_over_four_times_the_pods_does_four_times_the_work(history: Callable[[int], SmallCluster]) -> None:
    small, large = (steps(history(pods).plan) for pods in (SMALL, 4 * SMALL))
    assert large < 4.2 * small
