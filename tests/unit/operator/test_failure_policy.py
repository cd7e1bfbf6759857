"""What each kind of end costs, whom it costs, and what comes after it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.operator.small_cluster import GRACE, SmallCluster, make_job, ppo_spec

from alignment_api.contract.context import Failure, Outcome
from alignment_api.contract.status import CheckpointStatus
from alignment_operator.plan.failure_policy import AVOIDED_FOR
from alignment_operator.plan.terminations import GIVEN_UP_AFTER

DISK = "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 1Gi."


def grpo(servers: int, **spec: object) -> SmallCluster:
    """A GRPO job in stage `train`."""
    rewards = [{"function": {"numericAnswer": {}}}]
    algorithm = {"algorithm": {"grpo": {"rewards": rewards}}, "roles": {"rollout": {"replicas": servers}}}
    cluster = SmallCluster(make_job(algorithm | spec))
    cluster.run_until("train")
    return cluster


@pytest.fixture
def training() -> SmallCluster:
    cluster = SmallCluster()
    cluster.run_until("train")
    return cluster


def crash(cluster: SmallCluster, role: str, index: int = 0) -> None:
    """The newest pod of a slot fails; its next life starts as soon as it may."""
    life = cluster.pod(role, index).life
    cluster.fail(cluster.pod(role, index).name, reason="EngineDead")
    for _ in range(100):
        cluster.reconcile()
        if cluster.status.finished_at is not None:
            return
        if cluster.pod(role, index).life > life:
            cluster.do_well(holding=str(cluster.status.stage))
            cluster.reconcile()
            return
        cluster.wait(10)


def save(cluster: SmallCluster, role: str, step: int) -> None:
    """A trainee's checkpoint is verified."""
    cluster.poll(cluster.pod(role).name, checkpoint=CheckpointStatus(step=step, verified_at=cluster.now))
    cluster.reconcile()


@pytest.mark.parametrize(("role", "stage"), [("policy", "train"), ("reference", "prepare")])
def test_a_node_that_turns_pods_away_is_kept_away_from_for_a_while(role: str, stage: str) -> None:
    cluster = SmallCluster()
    cluster.run_until(stage)
    cluster.reject(cluster.pod(role).name, "gpu-1")
    plan = cluster.reconcile()
    assert plan.create == ()
    assert plan.next_look is not None
    assert plan.next_look <= timedelta(seconds=10)
    waiting = cluster.condition("RolesReady")
    assert waiting is not None
    assert "; keeps away from node gpu-1 until 12:1" in waiting.message
    cluster.wait(10)
    assert [(i.role, i.life, i.avoid) for i in cluster.reconcile().create] == [(role, 2, ("gpu-1",))]
    cluster.start(cluster.pod(role).name)
    cluster.reconcile()
    cluster.now += AVOIDED_FOR
    cluster.vanish(cluster.pod(role).name)
    assert [(i.life, i.avoid) for i in cluster.reconcile().create] == [(3, ())]


def test_a_pod_that_no_other_node_takes_is_made_again_when_its_node_may_take_it() -> None:
    """Its volume is on that node, or it is the only one. What a pod keeps away from can never be changed."""
    cluster = SmallCluster(make_job({"budgets": {"failures": 0, "disruptions": 0}}))
    cluster.run_until("train")
    cluster.reject(cluster.pod("policy").name, "gpu-1")
    cluster.reconcile()
    cluster.wait(10)
    cluster.reconcile()
    waiting = cluster.pod("policy")
    assert (waiting.life, waiting.avoids) == (2, ("gpu-1",))
    cluster.change(waiting.name, reason="Unschedulable", message="0/1 nodes are available")
    cluster.wait(AVOIDED_FOR.total_seconds() - 20)
    cluster.reconcile()
    assert cluster.pod("policy").life == 2
    cluster.wait(20)
    cluster.reconcile()
    assert waiting.name not in cluster.pods
    cluster.wait(30)
    assert [(i.life, i.avoid) for i in cluster.reconcile().create] == [(3, ())]
    assert cluster.status.phase == "Running"


def test_a_pod_that_waits_for_room_is_left_alone_when_it_keeps_away_from_nothing_needlessly() -> None:
    cluster = SmallCluster()
    cluster.run_until("train")
    cluster.fail(cluster.pod("policy").name)
    cluster.reconcile()
    cluster.wait(10)
    cluster.reconcile()
    cluster.change(cluster.pod("policy").name, reason="Unschedulable")
    for _ in range(3):
        cluster.wait(AVOIDED_FOR.total_seconds())
        cluster.reconcile()
    assert cluster.pod("policy").life == 2


def test_rejections_back_off_and_use_no_budget() -> None:
    cluster = SmallCluster(make_job({"budgets": {"failures": 0, "disruptions": 0}}))
    cluster.run_until("train")
    for seconds in (10, 20, 40, 80, 160, 300, 300):
        cluster.reject(cluster.pod("policy").name, "gpu-1")
        cluster.reconcile()
        cluster.wait(seconds - 1)
        assert cluster.reconcile().create == ()
        cluster.wait(1)
        assert len(cluster.reconcile().create) == 1
    assert cluster.status.phase == "Running"
    assert cluster.tally("policy") == (0, 7)


def test_an_eviction_for_want_of_disk_backs_off_and_says_what_to_raise(training: SmallCluster) -> None:
    evicted = {"phase": "Failed", "ready": False, "disrupted": True, "reason": "Evicted", "message": DISK}
    training.change(training.pod("policy").name, **evicted)
    assert training.reconcile().create == ()
    waiting = training.condition("RolesReady")
    assert waiting is not None
    assert waiting.message.startswith("policy tries again at ")
    assert "raise spec.roles.policy.ephemeralStorage" in waiting.message
    assert training.tally("policy") == (0, 1)
    training.wait(10)
    assert len(training.reconcile().create) == 1


def test_a_reclaim_of_any_number_of_servers_ends_no_job() -> None:
    cluster = grpo(128)
    attempt = cluster.status.attempt
    for index in range(101):
        cluster.evict(cluster.pod("rollout", index).name)
    assert len(cluster.reconcile().create) == 101
    assert (cluster.status.phase, cluster.status.attempt) == ("Running", attempt)
    assert cluster.tally("rollout") == (0, 101)


def test_a_server_that_is_lost_beyond_its_budget_is_replaced_with_pauses() -> None:
    cluster = grpo(1, budgets={"disruptions": 2})
    for pauses in (False, False, True):
        cluster.vanish(cluster.pod("rollout").name)
        assert (cluster.reconcile().create == ()) == pauses
        cluster.wait(10)
        cluster.reconcile()
        cluster.start(cluster.pod("rollout").name)
        cluster.reconcile()
    assert cluster.status.phase == "Running"


def test_crashes_of_different_servers_do_not_add_up() -> None:
    cluster = grpo(8)
    for index in range(8):
        crash(cluster, "rollout", index)
    assert cluster.status.phase == "Running"
    assert cluster.tally("rollout") == (8, 0)


def test_a_server_that_crashes_on_does_not_end_the_job_while_another_of_its_role_holds() -> None:
    cluster = grpo(2)
    for _ in range(6):
        crash(cluster, "rollout", 1)
    assert cluster.status.phase == "Running"
    for _ in range(4):
        crash(cluster, "rollout", 0)
    failed = cluster.condition("Failed")
    assert failed is not None
    assert failed.message == (
        "rollout: 4 failures without progress, budgets.failures is 3; last: EngineDead: what was found"
    )


def test_crashes_a_week_apart_end_no_job(training: SmallCluster) -> None:
    for _ in range(5):
        crash(training, "policy")
        training.now += timedelta(days=7)
    assert training.status.phase == "Running"
    assert training.tally("policy") == (5, 0)
    crash(training, "policy")
    budget = next(record.budget for record in training.status.instances if record.role == "policy")
    assert budget is not None
    assert (budget.failures, budget.waits) == (1, 1)  # the back-off forgets too


def test_a_checkpoint_that_got_further_refills_the_budgets(training: SmallCluster) -> None:
    for step in (100, 200):
        for _ in range(3):
            crash(training, "policy")
        save(training, "policy", step)
    for _ in range(3):
        crash(training, "policy")
    assert training.status.phase == "Running"
    save(training, "policy", 200)  # the newest was damaged: it was made again
    crash(training, "policy")
    assert training.status.phase == "Failed"


def test_a_checkpoint_that_only_an_outcome_tells_refills_the_budgets_too(training: SmallCluster) -> None:
    """No poll reaches the pods."""
    for step in (100, 200, 300, 400, 500, 600):
        saved = CheckpointStatus(step=step, verified_at=training.now)
        failure = Failure(reason="EngineDead", message="", retryable=True)
        outcome = Outcome(result="failed", failure=failure, checkpoint=saved)
        training.change(training.pod("policy").name, phase="Failed", ready=False, exit_code=1, outcome=outcome)
        for _ in range(40):
            training.reconcile()
            training.wait(10)
        training.do_well(holding="train")
    assert training.status.phase == "Running"
    assert training.status.furthest_step == 600


def test_a_checkpoint_of_the_trainee_refills_the_budgets_of_its_servers() -> None:
    cluster = grpo(1)
    for step in (10, 20, 30):
        for _ in range(3):
            crash(cluster, "rollout")
        save(cluster, "actor", step)
    assert cluster.status.phase == "Running"


def test_a_new_stage_starts_with_full_budgets() -> None:
    cluster = SmallCluster(make_job(ppo_spec()))
    for stage, role in (("reward", "policy"), ("train", "actor")):
        cluster.run_until(stage)
        for _ in range(3):
            crash(cluster, role)
    assert cluster.status.phase == "Running"


def test_a_gang_has_one_budget_whichever_of_its_pods_fails() -> None:
    cluster = SmallCluster(make_job(ppo_spec()))
    cluster.run_until("train")
    for role in ("actor", "critic", "actor", "critic"):
        life = cluster.pod(role).life
        cluster.fail(cluster.pod(role).name)
        for _ in range(30):
            cluster.reconcile()
            if cluster.status.finished_at is not None or cluster.pod(role).life > life:
                break
            cluster.wait(10)
        cluster.do_well(holding="train")
    failed = cluster.condition("Failed")
    assert failed is not None
    assert failed.message.startswith("actor and critic: 4 failures without progress, budgets.failures is 3; last: ")


def test_want_of_memory_stays_a_failure_when_a_peer_that_was_told_to_go_is_disrupted() -> None:
    cluster = SmallCluster(make_job({"roles": {"policy": {"replicas": 2}}, "budgets": {"failures": 0}}))
    cluster.run_until("train")
    first, second = cluster.names("policy")
    cluster.change(first, phase="Failed", exit_code=137, reason="OOMKilled", ready=False)
    cluster.reconcile()
    for trouble in ({"disrupted": True}, {"node_lost": True}):
        cluster.change(second, **trouble)
        cluster.reconcile()
        assert cluster.tally("policy") == (1, 0)
    cluster.end_evicted(second)
    cluster.reconcile()
    assert cluster.status.phase == "Failed"


def test_an_eviction_after_our_own_delete_changes_no_counted_end() -> None:
    cluster = SmallCluster(make_job({"roles": {"policy": {"replicas": 2}}}))
    cluster.run_until("train")
    first, second = cluster.names("policy")
    cluster.fail(first)
    cluster.reconcile()
    cluster.change(second, disrupted=True)
    cluster.reconcile()
    assert cluster.tally("policy") == (1, 0)


def test_a_gang_that_could_not_meet_has_not_failed() -> None:
    cluster = SmallCluster(make_job({"roles": {"policy": {"replicas": 2}}, "budgets": {"failures": 0}}))
    cluster.run_until("prepare")
    cluster.do_well()
    cluster.reconcile()
    first = cluster.pod("policy", 0).name
    cluster.start(first)  # its peer finds no node
    cluster.fail(first, reason="RendezvousTimeoutError")
    cluster.reconcile()
    assert (cluster.status.phase, cluster.tally("policy")) == ("Running", (0, 1))


def test_a_drought_of_servers_is_no_failure_and_silence_of_servers_that_are_ready_is_one() -> None:
    cluster = grpo(2, budgets={"failures": 1})
    for index in (0, 1):
        cluster.vanish(cluster.pod("rollout", index).name)
    cluster.reconcile()
    cluster.fail(cluster.pod("actor").name, reason="PhaseStalled")
    cluster.reconcile()
    assert cluster.tally("actor") == (0, 1)
    for _ in range(3):
        cluster.do_well(holding="train")
        cluster.reconcile()
    assert cluster.pod("actor").ready
    cluster.fail(cluster.pod("actor").name, reason="PhaseStalled")
    cluster.reconcile()
    assert cluster.tally("actor") == (1, 1)


def test_the_word_of_whom_a_stalled_phase_ended_counts_before_the_echoes_of_its_peers() -> None:
    cluster = SmallCluster(make_job(ppo_spec()))
    cluster.run_until("train")
    cluster.vanish(cluster.pod("rollout").name)
    cluster.reconcile()
    cluster.fail(cluster.pod("critic").name, reason="RuntimeError")
    cluster.fail(cluster.pod("actor").name, reason="PhaseStalled")
    cluster.reconcile()
    assert (cluster.tally("actor"), cluster.tally("critic")) == ((0, 1), (0, 0))


@pytest.mark.parametrize("node_lost", [False, True])
def test_a_writer_that_does_not_die_is_given_up(node_lost: bool) -> None:
    cluster = SmallCluster()
    cluster.run_until("train")
    name = cluster.pod("policy").name
    cluster.change(name, gone_by=cluster.now + GRACE, ready=False, node_lost=node_lost)
    if not node_lost:
        plan = cluster.reconcile()
        assert plan.create == ()
        cluster.now += GRACE + GIVEN_UP_AFTER - timedelta(seconds=1)
        plan = cluster.reconcile()
        assert (plan.create, plan.next_look) == ((), timedelta(seconds=1))
        cluster.now += timedelta(seconds=1)
    assert [(i.role, i.life) for i in cluster.reconcile().create] == [("policy", 2)]
    assert name in cluster.pods
    assert cluster.tally("policy") == (0, 1)


def test_a_suspended_job_does_not_wait_for_ever_for_a_pod_that_does_not_die(training: SmallCluster) -> None:
    training.respec(suspend=True)
    training.reconcile()
    training.now += GRACE + GIVEN_UP_AFTER
    training.reconcile()
    assert training.status.phase == "Suspended"


def test_a_process_that_has_ended_beside_a_container_that_runs_on_has_ended(training: SmallCluster) -> None:
    name = training.pod("policy").name
    training.succeed(name)
    training.change(name, lingers=True)
    plan = training.reconcile()
    assert training.status.stage == "evaluate"
    assert [(removal.name, removal.grace) for removal in plan.delete] == [(name, timedelta(seconds=30))]


def test_a_failed_pod_that_holds_its_node_is_deleted_and_holds_nobody_back(training: SmallCluster) -> None:
    name = training.pod("policy").name
    training.fail(name)
    training.change(name, lingers=True)
    plan = training.reconcile()
    assert [removal.name for removal in plan.delete] == [name]
    training.wait(10)
    assert [(i.role, i.life) for i in training.reconcile().create] == [("policy", 2)]


def test_a_mistake_is_heard_though_a_container_beside_it_runs_on(training: SmallCluster) -> None:
    name = training.pod("policy").name
    mistake = Failure(reason="InvalidData", message="row 3", retryable=False)
    training.change(name, phase="Failed", outcome=Outcome(result="failed", failure=mistake), lingers=True)
    plan = training.reconcile()
    assert training.status.phase == "Failed"
    assert [removal.name for removal in plan.delete] == [name]


def test_a_pod_of_a_role_that_nobody_knows_is_left_alone(training: SmallCluster) -> None:
    before = training.pod("policy")
    training.pods["guest"] = type(before)(**vars(before) | {"name": "guest", "uid": "guest", "role": "guest"})
    plan = training.reconcile()
    assert (plan.create, plan.delete) == ((), ())
