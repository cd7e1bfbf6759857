"""What the user may do to a running job: suspend, scale, set deadlines; and what the pods' waiting looks like."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.operator.small_cluster import START, SmallCluster, make_job


@pytest.fixture
def training() -> SmallCluster:
    cluster = SmallCluster()
    cluster.run_until("train")
    return cluster


def suspended(cluster: SmallCluster) -> tuple[str, str] | None:
    condition = cluster.condition("Suspended")
    return None if condition is None else (condition.status, condition.reason)


def test_suspending_saves_and_ends_every_pod_and_counts_nothing(training: SmallCluster) -> None:
    name = training.pod("policy").name
    training.respec(suspend=True)
    plan = training.reconcile()
    assert [(removal.name, removal.grace) for removal in plan.delete] == [(name, None)]
    assert suspended(training) == ("False", "Suspending")
    training.end_evicted(name)
    training.reconcile()
    assert suspended(training) == ("True", "Suspended")
    assert training.status.phase == "Suspended"
    training.wait(30)
    assert training.reconcile().create == ()
    assert training.tally("policy") == (0, 0)


def test_a_resumed_job_goes_on_with_its_next_attempt(training: SmallCluster) -> None:
    training.respec(suspend=True)
    training.reconcile()
    training.respec(suspend=False)
    assert training.reconcile().create == ()  # the first attempt is still saving
    training.wait(30)
    assert [(i.role, i.life) for i in training.reconcile().create] == [("policy", 2)]
    assert suspended(training) == ("False", "Resumed")
    assert training.status.attempt == 2


def test_a_job_that_is_born_suspended_starts_nothing_and_no_clock() -> None:
    cluster = SmallCluster(make_job({"suspend": True, "activeDeadlineSeconds": 60}))
    cluster.reconcile()
    cluster.wait(3600)
    plan = cluster.reconcile()
    assert plan.create == ()
    assert cluster.status.phase == "Suspended"
    assert cluster.status.started_at is None
    cluster.respec(suspend=False)
    assert len(cluster.reconcile().create) == 2
    assert cluster.status.started_at == START + timedelta(hours=1)


def test_the_deadline_does_not_run_while_suspended() -> None:
    cluster = SmallCluster(make_job({"activeDeadlineSeconds": 100}))
    cluster.reconcile()
    cluster.wait(60)
    cluster.respec(suspend=True)
    cluster.reconcile()
    assert cluster.status.active_seconds == 60
    cluster.wait(5000)
    cluster.reconcile()
    cluster.respec(suspend=False)
    cluster.reconcile()
    cluster.wait(39)
    assert cluster.reconcile().next_look == timedelta(seconds=1)
    assert cluster.status.phase != "Failed"
    cluster.wait(1)
    plan = cluster.reconcile()
    failed = cluster.condition("Failed")
    assert failed is not None
    assert failed.reason == "DeadlineExceeded"
    assert {removal.name for removal in plan.delete} >= {"helpful-prepare-0-2-" + plan.delete[0].name[-5:]}


def test_servers_may_be_added_and_taken_away_while_the_job_runs() -> None:
    cluster = SmallCluster()
    cluster.run_until("prepare")
    cluster.scale("reference", 3)
    plan = cluster.reconcile()
    assert [(i.role, i.index, i.life) for i in plan.create] == [("reference", 1, 1), ("reference", 2, 1)]
    cluster.scale("reference", 1)
    cluster.reconcile()
    assert cluster.names("reference") == [cluster.pod("reference", 0).name]
    cluster.scale("reference", 2)
    plan = cluster.reconcile()
    assert [(i.index, i.life) for i in plan.create] == [(1, 2)]
    assert cluster.tally("reference") == (0, 0)


def test_no_servers_pause_the_work_and_ask_for_none() -> None:
    cluster = SmallCluster(make_job({"roles": {"reference": {"replicas": 0}}}))
    plan = cluster.reconcile()
    assert [i.role for i in plan.create] == ["prepare"]


@pytest.mark.parametrize(
    ("reason", "message", "expected"),
    [
        ("ImagePullBackOff", "no such image", "policy 0: ImagePullBackOff (no such image)"),
        ("Unschedulable", "0/3 nodes are available", "policy 0: Unschedulable (0/3 nodes are available)"),
        (None, None, "policy 0: Pending"),
    ],
)
def test_what_a_pod_waits_for_stands_in_status(reason: str | None, message: str | None, expected: str) -> None:
    cluster = SmallCluster()
    cluster.run_until("prepare")
    cluster.succeed(cluster.pod("prepare").name)
    cluster.reconcile()
    cluster.change(cluster.pod("policy").name, reason=reason, message=message)
    cluster.reconcile()
    condition = cluster.condition("RolesReady")
    assert condition is not None
    assert (condition.status, condition.message) == ("False", expected)


def test_a_gate_is_named_as_what_a_server_waits_for() -> None:
    cluster = SmallCluster()
    cluster.reconcile()
    cluster.reconcile()
    condition = cluster.condition("RolesReady")
    assert condition is not None
    assert condition.message == "prepare 0: Pending; reference 0: Gated"


def test_a_condition_keeps_its_time_until_its_status_changes(training: SmallCluster) -> None:
    since = training.condition("RolesReady")
    assert since is not None
    assert since.status == "True"
    training.wait(60)
    training.reconcile()
    unchanged = training.condition("RolesReady")
    assert unchanged is not None
    assert unchanged.last_transition_time == since.last_transition_time
    training.change(training.pod("policy").name, ready=False)
    training.reconcile()
    changed = training.condition("RolesReady")
    assert changed is not None
    assert changed.last_transition_time == training.now


def test_running_pods_are_polled_every_five_seconds(training: SmallCluster) -> None:
    assert training.plan().next_look == timedelta(seconds=5)


def test_a_pool_without_nodes_is_a_warning() -> None:
    cluster = SmallCluster()
    cluster.nodes = {"onDemand": 2, "spot": 0, "cpu": 2}
    plan = cluster.reconcile()
    condition = cluster.condition("PoolsAvailable")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "NoNodesNow")
    assert "spot" in condition.message
    assert len(plan.create) == 2


def test_where_nodes_cannot_be_listed_the_pools_are_unknown_and_nothing_waits_for_them() -> None:
    cluster = SmallCluster()
    cluster.nodes = None
    plan = cluster.reconcile()
    condition = cluster.condition("PoolsAvailable")
    assert condition is not None
    assert (condition.status, condition.reason) == ("Unknown", "NodesNotListed")
    assert "may not list nodes" in condition.message
    assert len(plan.create) == 2


def test_trainable_roles_land_on_on_demand_unless_the_policy_is_put_on_spot_by_name() -> None:
    for placement, pool in ((None, "onDemand"), ("spot", "spot")):
        roles = {"policy": {"placement": placement}} if placement else {}
        cluster = SmallCluster(make_job({"roles": roles}))
        cluster.run_until("prepare")
        cluster.succeed(cluster.pod("prepare").name)
        assert [(i.role, i.pool) for i in cluster.reconcile().create] == [("policy", pool)]
