"""Failures, disruptions and user's mistakes: what each costs and what it starts."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.operator.small_cluster import GRACE, SmallCluster, make_job

from alignment_api.contract.context import Failure, Outcome
from alignment_operator.plan.budgets import backoff


@pytest.fixture
def training() -> SmallCluster:
    cluster = SmallCluster()
    cluster.run_until("train")
    return cluster


@pytest.fixture
def preparing() -> SmallCluster:
    cluster = SmallCluster(make_job({"roles": {"reference": {"replicas": 2}}}))
    cluster.run_until("prepare")
    return cluster


def test_losing_a_server_restarts_nothing_else(preparing: SmallCluster) -> None:
    others = {preparing.pod("prepare").uid, preparing.pod("reference", 1).uid}
    preparing.evict(preparing.pod("reference", 0).name)
    plan = preparing.reconcile()
    assert [(i.role, i.index, i.life) for i in plan.create] == [("reference", 0, 2)]
    assert plan.delete == ()
    assert others <= {pod.uid for pod in preparing.pods.values()}
    assert preparing.tally("reference") == (0, 1)


def test_a_server_on_a_lost_node_is_replaced_at_once_under_another_name(preparing: SmallCluster) -> None:
    name = preparing.pod("reference", 0).name
    preparing.lose_node(name)
    plan = preparing.reconcile()
    assert [i.name for i in plan.create] == [name.replace("-0-1-", "-0-2-")]
    assert [removal.name for removal in plan.delete] == [name]


def test_a_trainer_on_an_unreachable_node_is_given_time(training: SmallCluster) -> None:
    training.lose_node(training.pod("policy").name)
    plan = training.reconcile()
    assert (plan.create, plan.delete) == ((), ())
    assert training.tally("policy") == (0, 0)


def test_the_next_attempt_starts_once_the_control_plane_has_given_a_lost_one_up(training: SmallCluster) -> None:
    name = training.pod("policy").name
    training.lose_node(name)
    training.change(name, gone_by=training.now + GRACE, disrupted=True)
    assert [(i.role, i.life) for i in training.reconcile().create] == [("policy", 2)]
    assert name in training.pods  # still Terminating on its dead node, and no obstacle: storage fences it
    training.wait(60)
    assert training.reconcile().next_look == timedelta(minutes=1)  # nor a reason to look


def test_what_no_claim_fences_waits_until_the_lost_one_must_have_ended(preparing: SmallCluster) -> None:
    name = preparing.pod("prepare").name
    preparing.lose_node(name)
    preparing.change(name, gone_by=preparing.now + GRACE, disrupted=True)
    plan = preparing.reconcile()
    assert (plan.create, plan.next_look) == ((), timedelta(seconds=5))
    condition = preparing.condition("RolesReady")
    assert condition is not None
    assert (condition.reason, condition.message) == ("Fencing", f"prepare waits for {name} to end")
    preparing.wait(29)
    assert preparing.reconcile().create == ()
    preparing.wait(1)
    assert [(i.role, i.life) for i in preparing.reconcile().create] == [("prepare", 2)]


def test_an_eviction_that_may_be_given_up_restarts_nothing(training: SmallCluster) -> None:
    training.change(training.pod("policy").name, disrupted=True)
    assert training.reconcile().create == ()
    assert training.tally("policy") == (0, 0)


def test_the_next_attempt_starts_when_the_evicted_one_has_ended(training: SmallCluster) -> None:
    name = training.pod("policy").name
    training.evict(name)
    assert training.reconcile().create == ()
    training.end_evicted(name)
    assert [(i.role, i.life) for i in training.reconcile().create] == [("policy", 2)]
    assert training.tally("policy") == (0, 1)


def test_a_gangs_loss_counts_once_and_restarts_it_as_a_whole() -> None:
    cluster = SmallCluster(make_job({"roles": {"policy": {"replicas": 3}}}))
    cluster.run_until("train")
    first, second, third = cluster.names("policy")
    cluster.fail(second)
    plan = cluster.reconcile()
    assert sorted(removal.name for removal in plan.delete) == [first, third]
    cluster.end_evicted(first)
    cluster.fail(third)
    cluster.wait(30)
    plan = cluster.reconcile()
    assert [(i.role, i.index, i.life) for i in plan.create] == [("policy", 0, 2), ("policy", 1, 2), ("policy", 2, 2)]
    assert cluster.tally("policy") == (1, 0)


def test_errors_of_peers_are_no_failures_when_the_gang_has_lost_a_node() -> None:
    cluster = SmallCluster(make_job({"roles": {"policy": {"replicas": 2}}}))
    cluster.run_until("train")
    first, second = cluster.names("policy")
    cluster.fail(first)
    cluster.evict(second)
    cluster.reconcile()
    assert cluster.tally("policy") == (0, 1)


def test_a_peers_error_becomes_a_disruption_when_the_lost_node_shows_later() -> None:
    cluster = SmallCluster(make_job({"roles": {"policy": {"replicas": 2}}, "budgets": {"failures": 0}}))
    cluster.run_until("train")
    first, second = cluster.names("policy")
    cluster.fail(first)  # the connection to its peer broke
    cluster.reconcile()
    assert cluster.tally("policy") == (1, 0)
    assert cluster.status.phase == "Running"
    cluster.lose_node(second)
    plan = cluster.reconcile()
    cluster.reconcile()
    assert cluster.tally("policy") == (0, 1)
    assert [(i.index, i.life) for i in plan.create] == [(0, 2), (1, 2)]  # it was told to go long ago


def test_a_peers_error_seen_together_with_the_lost_node_is_a_disruption_at_once() -> None:
    """Two of the 100,000 histories of `make soak`: the first pass counted a failure, the next one made it a loss."""
    cluster = SmallCluster(make_job({"roles": {"policy": {"replicas": 2}}, "budgets": {"failures": 0}}))
    cluster.run_until("train")
    first, second = cluster.names("policy")
    cluster.lose_node(first)
    cluster.fail(second)
    plan = cluster.plan()
    cluster.record(plan)
    assert cluster.tally("policy") == (0, 1)
    assert cluster.plan().status == plan.status


def test_a_gang_without_a_lost_node_is_judged_when_all_of_it_has_ended() -> None:
    cluster = SmallCluster(make_job({"roles": {"policy": {"replicas": 2}}, "budgets": {"failures": 0}}))
    cluster.run_until("train")
    first, second = cluster.names("policy")
    cluster.fail(first)
    cluster.reconcile()
    assert cluster.status.phase == "Running"
    cluster.end_evicted(second)
    plan = cluster.reconcile()
    assert cluster.status.phase == "Failed"
    assert plan.create == ()


def test_an_end_seen_by_two_operators_is_counted_once(training: SmallCluster) -> None:
    training.fail(training.pod("policy").name)
    first, second = training.plan(), training.plan()
    assert first.status == second.status
    training.record(first)
    training.reconcile()
    training.reconcile()
    assert training.tally("policy") == (1, 0)


def test_a_pod_that_was_seen_and_is_gone_was_lost(training: SmallCluster) -> None:
    training.vanish(training.pod("policy").name)
    plan = training.reconcile()
    assert [(i.role, i.life) for i in plan.create] == [("policy", 2)]
    assert training.tally("policy") == (0, 1)


def test_a_pod_that_was_recorded_and_never_made_is_made_again_under_its_name() -> None:
    cluster = SmallCluster()
    plan = cluster.plan()
    cluster.record(plan)
    assert cluster.plan().create == plan.create


@pytest.mark.parametrize(
    ("ending", "tally"),
    [
        ({"exit_code": 1}, (1, 0)),
        ({"exit_code": 143}, (1, 0)),
        ({"exit_code": 137, "reason": "OOMKilled"}, (1, 0)),
        ({"exit_code": 143, "outcome": Outcome(result="interrupted")}, (0, 1)),
        ({"exit_code": 1, "disrupted": True}, (0, 1)),
        ({"exit_code": 1, "node_lost": True}, (0, 1)),
        ({"reason": "Evicted", "disrupted": True}, (0, 1)),
    ],
    ids=["error", "unasked SIGTERM", "OOM", "asked to go", "DisruptionTarget", "node lost", "evicted"],
)
def test_what_counts_as_a_failure(training: SmallCluster, ending: dict[str, object], tally: tuple[int, int]) -> None:
    training.change(training.pod("policy").name, phase="Failed", ready=False, **ending)
    training.reconcile()
    assert training.tally("policy") == tally


def test_a_pod_out_of_memory_names_the_field_to_raise() -> None:
    cluster = SmallCluster(make_job({"budgets": {"failures": 0}}))
    cluster.run_until("train")
    cluster.change(cluster.pod("policy").name, phase="Failed", exit_code=137, reason="OOMKilled")
    cluster.reconcile()
    failed = cluster.condition("Failed")
    assert failed is not None
    assert failed.reason == "TooManyFailures"
    assert failed.message == (
        "policy: 1 failures without progress, budgets.failures is 0; "
        "last: OOMKilled: killed for want of memory; raise spec.roles.policy.memory"
    )


def test_a_users_mistake_fails_the_job_at_once(preparing: SmallCluster) -> None:
    name = preparing.pod("prepare").name
    preparing.fail(name, retryable=False, reason="InvalidData")
    plan = preparing.reconcile()
    failed = preparing.condition("Failed")
    assert failed is not None
    assert (failed.reason, failed.message) == ("InvalidData", "prepare: what was found")
    assert preparing.status.phase == "Failed"
    data = preparing.condition("DataReady")
    assert data is not None
    assert (data.status, data.message) == ("False", "prepare: what was found")
    assert plan.create == ()
    assert plan.support is None
    assert {removal.name for removal in plan.delete} == set(preparing.names("reference"))
    assert name in preparing.pods  # for its logs


def test_a_mistake_is_heard_though_a_pod_that_cannot_tell_ended_first() -> None:
    cluster = SmallCluster(make_job({"roles": {"policy": {"replicas": 2}}}))
    cluster.run_until("train")
    first, second = cluster.names("policy")
    cluster.change(second, phase="Failed", exit_code=1)
    cluster.reconcile()
    mistake = Outcome(result="failed", failure=Failure(reason="StorageTaken", message="another job's", retryable=False))
    cluster.change(first, phase="Failed", exit_code=1, outcome=mistake)
    cluster.reconcile()
    assert cluster.status.phase == "Failed"


def test_failures_back_off_and_use_up_their_budget(training: SmallCluster) -> None:
    for expected in (10, 20, 40):
        training.fail(training.pod("policy").name)
        plan = training.reconcile()
        assert plan.next_look == timedelta(seconds=expected)
        training.wait(expected - 1)
        assert training.reconcile().create == ()
        training.wait(1)
        assert len(training.reconcile().create) == 1
        training.start(training.pod("policy").name)
    training.fail(training.pod("policy").name)
    training.reconcile()
    assert training.status.phase == "Failed"
    assert training.tally("policy") == (4, 0)


def test_disruptions_do_not_back_off_and_have_a_budget_of_their_own() -> None:
    cluster = SmallCluster(make_job({"budgets": {"failures": 0, "disruptions": 2}}))
    cluster.run_until("train")
    for life in (2, 3):
        cluster.vanish(cluster.pod("policy").name)
        assert [i.life for i in cluster.reconcile().create] == [life]
        cluster.start(cluster.pod("policy").name)
        cluster.reconcile()
    cluster.vanish(cluster.pod("policy").name)
    cluster.reconcile()
    failed = cluster.condition("Failed")
    assert failed is not None
    assert failed.reason == "TooManyDisruptions"


def test_each_role_has_the_whole_budget() -> None:
    cluster = SmallCluster(make_job({"budgets": {"failures": 1}}))
    cluster.run_until("prepare")
    cluster.fail(cluster.pod("reference").name)
    cluster.reconcile()
    cluster.wait(10)
    cluster.run_until("train")
    cluster.fail(cluster.pod("policy").name)
    cluster.reconcile()
    assert cluster.status.phase == "Running"


def test_the_longest_back_off_is_five_minutes() -> None:
    assert [backoff(n).total_seconds() for n in (1, 2, 3, 4, 5, 6, 7, 1000)] == [10, 20, 40, 80, 160, 300, 300, 300]


def test_only_the_newest_failed_pod_of_a_place_is_kept(training: SmallCluster) -> None:
    for _ in range(2):
        training.fail(training.pod("policy").name)
        training.reconcile()
        training.wait(60)
        training.reconcile()
        training.start(training.pod("policy").name)
    training.reconcile()
    assert [(pod.life, pod.phase) for pod in training.pods.values() if pod.role == "policy"] == [
        (2, "Failed"),
        (3, "Running"),
    ]
