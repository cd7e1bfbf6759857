"""Nothing waits for ever: not for getting ready, not for a step. And nothing that must be waited for ends a job."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.operator.small_cluster import SmallCluster, make_job, ppo_spec

from alignment_api.contract.status import CheckpointStatus, Progress
from alignment_operator.plan.make_plan import make_plan

IMAGES = "name an image that its nodes can pull: spec.image, imagePullSecrets in the pool's podTemplate"


def starting(spec: dict[str, Any] | None = None) -> SmallCluster:
    """A DPO job whose policy has just been made."""
    cluster = SmallCluster(make_job(spec))
    cluster.run_until("prepare")
    cluster.do_well()
    cluster.reconcile()
    cluster.reconcile()
    assert cluster.status.stage == "train"
    return cluster


def training(spec: dict[str, Any] | None = None) -> SmallCluster:
    cluster = SmallCluster(make_job(spec))
    cluster.run_until("train")
    cluster.reconcile()
    return cluster


def grpo(servers: int, **rollout: Any) -> SmallCluster:
    rewards = [{"function": {"numericAnswer": {}}}]
    roles = {"rollout": {"replicas": servers} | rollout}
    return training({"algorithm": {"grpo": {"rewards": rewards}}, "roles": roles})


def failure(cluster: SmallCluster) -> str:
    failed = cluster.condition("Failed")
    assert failed is not None
    assert failed.reason == "NotReadyInTime"
    return failed.message.removesuffix("; its checkpoints stay: a new job may start from them by checkpoint.resumeFrom")


def step(cluster: SmallCluster, role: str, number: int, eta: int | None = None) -> None:
    progress = Progress(step=number, total_steps=100, eta_seconds=eta)
    cluster.poll(cluster.pod(role).name, progress=progress)
    cluster.reconcile()


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (
            {"reason": "ImagePullBackOff", "message": "no such image"},
            f"ImagePullBackOff (no such image); {IMAGES}",
        ),
        (
            {"reason": "Unschedulable", "message": "0/3 nodes are available"},
            "Unschedulable (0/3 nodes are available); ask for less in spec.roles.policy, add nodes to pool onDemand, "
            "or wait longer",
        ),
        (
            {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'},
            'CreateContainerConfigError (secret "hf" not found); create the Secret or ConfigMap that it names '
            "(spec.credentials)",
        ),
        ({"phase": "Running"}, "Starting; see its log; where its start takes this long, wait longer"),
        ({}, "Pending; see `kubectl describe pod {pod}`; most often a volume cannot be mounted"),
    ],
    ids=["image", "no node", "no secret", "a probe", "a volume"],
)
def test_what_never_gets_ready_ends_the_job_with_what_to_change(seen: dict[str, Any], words: str) -> None:
    cluster = starting()
    name = cluster.pod("policy").name
    cluster.change(name, **seen)
    cluster.wait(3599)
    plan = cluster.reconcile()
    assert cluster.status.phase == "Running"
    assert plan.next_look == timedelta(seconds=1)
    cluster.wait(1)
    cluster.reconcile()
    begin = "policy 0 has not become ready in readyDeadlineSeconds: 3600: "
    assert failure(cluster) == begin + words.format(pod=name)


def test_a_pod_that_a_quota_refuses_ends_the_job_too() -> None:
    cluster = SmallCluster(make_job({"readyDeadlineSeconds": 60}))
    cluster.record(cluster.plan())
    cluster.wait(60)
    cluster.record(cluster.plan())
    assert failure(cluster).startswith("prepare 0 has not become ready in readyDeadlineSeconds: 60: NotCreated; see ")


def test_the_deadline_may_be_raised_while_it_runs() -> None:
    cluster = starting({"readyDeadlineSeconds": 60})
    cluster.wait(59)
    cluster.respec(ready_deadline_seconds=120)
    cluster.wait(60)
    cluster.reconcile()
    assert cluster.status.phase == "Running"
    cluster.wait(1)
    cluster.reconcile()
    assert cluster.status.phase == "Failed"


def test_suspended_time_does_not_count() -> None:
    cluster = starting({"readyDeadlineSeconds": 60})
    cluster.wait(50)
    cluster.respec(suspend=True)
    cluster.reconcile()
    cluster.wait(3600)
    cluster.reconcile()
    cluster.respec(suspend=False)
    cluster.reconcile()
    cluster.wait(59)
    cluster.reconcile()
    assert cluster.status.finished_at is None
    cluster.wait(1)
    cluster.reconcile()
    assert failure(cluster).startswith("policy 0 has not become ready")


def test_nor_does_it_for_what_was_never_made_before() -> None:
    cluster = SmallCluster(make_job({"readyDeadlineSeconds": 60}))
    cluster.record(cluster.plan())  # and then nothing came of it
    cluster.respec(suspend=True)
    cluster.reconcile()
    cluster.wait(3600)
    cluster.respec(suspend=False)
    assert [i.role for i in cluster.reconcile().create] == ["prepare", "reference"]
    cluster.wait(59)
    cluster.reconcile()
    assert cluster.status.finished_at is None


def test_a_gate_that_opens_starts_the_clock() -> None:
    cluster = SmallCluster(make_job({"readyDeadlineSeconds": 60}))
    cluster.reconcile()
    cluster.reconcile()
    cluster.start(cluster.pod("prepare").name)
    cluster.change(cluster.pod("prepare").name, ready=False)
    cluster.wait(50)
    cluster.reconcile()
    cluster.change(cluster.pod("prepare").name, ready=True)
    cluster.reconcile()  # the reference may be scheduled from now on
    cluster.wait(59)
    cluster.reconcile()
    assert cluster.status.finished_at is None
    cluster.wait(1)
    cluster.reconcile()
    assert failure(cluster).startswith("reference 0 has not become ready")


def test_rows_that_are_being_prepared_keep_the_clock_from_running_out() -> None:
    cluster = SmallCluster(make_job({"readyDeadlineSeconds": 60}))
    cluster.reconcile()
    name = cluster.pod("prepare").name
    cluster.change(name, phase="Running")
    for rows in range(1, 10):
        cluster.poll(name, progress=Progress(step=rows, total_steps=100))
        cluster.change(name, ready=False)
        cluster.reconcile()
        cluster.wait(50)
    assert cluster.status.phase == "Running"
    cluster.wait(10)
    cluster.reconcile()
    assert cluster.status.phase == "Failed"


def test_one_server_of_a_role_is_enough() -> None:
    cluster = grpo(2)
    cluster.vanish(cluster.pod("rollout", 1).name)
    cluster.reconcile()
    cluster.change(cluster.pod("rollout", 1).name, reason="ImagePullBackOff")
    cluster.wait(7200)
    cluster.reconcile()
    assert cluster.status.phase == "Running"
    waiting = cluster.condition("RolesReady")
    assert waiting is not None
    assert waiting.message == "rollout 1: ImagePullBackOff"
    cluster.vanish(cluster.pod("rollout", 0).name)
    cluster.reconcile()
    cluster.change(cluster.pod("rollout", 0).name, reason="ImagePullBackOff")
    cluster.wait(3600)
    cluster.reconcile()
    assert failure(cluster).startswith("rollout 0 has not become ready")


@pytest.mark.parametrize(("placement", "phase"), [("spot", "Running"), ("onDemand", "Failed")])
def test_a_drought_of_spot_nodes_is_waited_out(placement: str, phase: str) -> None:
    cluster = grpo(1, placement=placement)
    cluster.vanish(cluster.pod("rollout").name)
    cluster.reconcile()
    cluster.change(cluster.pod("rollout").name, reason="Unschedulable")
    cluster.now += timedelta(days=3)
    cluster.reconcile()
    assert cluster.status.phase == phase


def test_servers_that_come_and_go_for_hours_end_no_job() -> None:
    cluster = grpo(1)
    for _ in range(10):
        cluster.vanish(cluster.pod("rollout").name)
        cluster.reconcile()
        cluster.reconcile()
        cluster.wait(1800)  # lost again before it was ready
    assert cluster.status.phase == "Running"


def test_a_next_life_has_the_whole_deadline_though_the_slot_was_late_before_it() -> None:
    cluster = SmallCluster(make_job({"readyDeadlineSeconds": 300}))
    cluster.reconcile()
    cluster.reconcile()
    cluster.vanish(cluster.pod("prepare").name)
    cluster.wait(400)
    plan = cluster.plan()
    assert [(i.role, i.life) for i in plan.create] == [("prepare", 2)]
    cluster.record(plan)
    assert cluster.plan().status == plan.status
    cluster.apply(plan)
    cluster.wait(299)
    cluster.reconcile()
    assert cluster.status.finished_at is None


def test_of_a_gang_the_pod_that_holds_up_the_others_is_named() -> None:
    cluster = starting({"roles": {"policy": {"replicas": 2}}})
    cluster.change(cluster.pod("policy", 0).name, phase="Running")
    cluster.change(cluster.pod("policy", 1).name, reason="Unschedulable")
    cluster.wait(3600)
    cluster.reconcile()
    assert failure(cluster).startswith("policy 1 has not become ready in readyDeadlineSeconds: 3600: Unschedulable; ")


def test_the_further_pods_of_a_gang_serve_nothing_and_are_ready_when_they_run() -> None:
    cluster = starting({"roles": {"policy": {"replicas": 2}}})
    cluster.start(cluster.pod("policy", 0).name)
    cluster.change(cluster.pod("policy", 1).name, phase="Running")
    cluster.reconcile()
    ready = cluster.condition("RolesReady")
    assert ready is not None
    assert (ready.status, cluster.status.ready) == ("True", "2/2")


def test_patience_for_servers_runs_from_when_they_went_missing() -> None:
    cluster = SmallCluster(make_job(ppo_spec(rollout={"replicas": 2})))
    cluster.run_until("train")
    cluster.vanish(cluster.pod("rollout", 1).name)
    cluster.reconcile()
    cluster.wait(300)  # no spot node comes
    cluster.fail(cluster.pod("actor").name)
    cluster.reconcile()
    cluster.wait(60)
    gates = {i.role: i.gated for i in cluster.reconcile().create}
    assert gates == {"actor": False, "critic": False}


def test_a_trainee_without_a_step_is_restarted_as_a_failure() -> None:
    cluster = training()
    name = cluster.pod("policy").name
    step(cluster, "policy", 10, eta=90 * 60)  # a minute a step
    cluster.wait(1799)
    cluster.reconcile()
    assert cluster.tally("policy") == (0, 0)
    cluster.wait(1)
    plan = cluster.reconcile()
    assert cluster.tally("policy") == (1, 0)
    assert [removal.name for removal in plan.delete] == [name]
    waiting = cluster.condition("RolesReady")
    assert waiting is not None
    assert f"Stalled: no step for 30 min (see spec.stallDeadlineSeconds); see the log of pod {name}" in waiting.message
    cluster.wait(30)
    assert [(i.role, i.life) for i in cluster.reconcile().create] == [("policy", 2)]


def test_ten_usual_steps_are_waited_for_and_each_step_starts_the_clock_anew() -> None:
    cluster = training()
    step(cluster, "policy", 10, eta=90 * 600)  # ten minutes a step
    cluster.wait(5999)
    step(cluster, "policy", 11, eta=89 * 600)
    cluster.wait(5999)
    cluster.reconcile()
    assert cluster.tally("policy") == (0, 0)
    cluster.wait(1)
    cluster.reconcile()
    assert cluster.tally("policy") == (1, 0)


def test_a_first_step_may_take_three_hours() -> None:
    cluster = training()
    step(cluster, "policy", 0)
    cluster.wait(10799)
    cluster.reconcile()
    assert cluster.tally("policy") == (0, 0)
    cluster.wait(1)
    cluster.reconcile()
    assert cluster.tally("policy") == (1, 0)


def test_a_laptop_that_sleeps_loses_nothing() -> None:
    cluster = training(
        {"storage": None, "output": None, "model": {"source": "hf://a/b"}, "data": {"source": "hf://a/c"}}
    )
    step(cluster, "policy", 10, eta=90)
    cluster.now += timedelta(hours=12)
    plan = make_plan(replace(cluster.observe(), own_files=True), cluster.now)
    assert (plan.create, plan.delete, plan.status.phase) == ((), (), "Running")
    assert cluster.plan().delete != ()


def test_the_stall_deadline_of_the_spec_counts() -> None:
    cluster = training({"stallDeadlineSeconds": 120})
    step(cluster, "policy", 10, eta=90 * 600)
    cluster.wait(120)
    cluster.reconcile()
    assert cluster.tally("policy") == (1, 0)


def test_who_cannot_be_asked_or_has_done_its_steps_or_waits_for_servers_has_not_stalled() -> None:
    silent = training()
    step(silent, "policy", 10, eta=90)
    silent.change(silent.pod("policy").name, status=None)
    exporting = training()
    step(exporting, "policy", 100, eta=0)
    waiting = grpo(1)
    step(waiting, "actor", 10, eta=90)
    waiting.vanish(waiting.pod("rollout").name)
    waiting.reconcile()
    waiting.change(waiting.pod("rollout").name, reason="Unschedulable")
    for cluster, role in ((silent, "policy"), (exporting, "policy"), (waiting, "actor")):
        cluster.reconcile()
        cluster.now += timedelta(days=1)
        cluster.reconcile()
        assert cluster.tally(role) == (0, 0)
    waiting.start(waiting.pod("rollout").name)
    waiting.reconcile()  # from here on it can
    waiting.now += timedelta(minutes=29)
    waiting.reconcile()
    assert waiting.tally("actor") == (0, 0)


@pytest.mark.parametrize(("role", "index"), [("actor", 0), ("rollout", 1)])
def test_a_process_that_was_ready_and_answers_no_more_is_restarted_as_a_failure(role: str, index: int) -> None:
    cluster = grpo(2)
    name = cluster.pod(role, index).name
    cluster.change(name, ready=False)
    cluster.reconcile()
    cluster.wait(1799)
    cluster.reconcile()
    assert cluster.tally(role) == (0, 0)
    cluster.wait(1)
    plan = cluster.reconcile()
    assert cluster.tally(role) == (1, 0)
    assert [removal.name for removal in plan.delete] == [name]


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_trainee_on_a_lost_node_is_given_up_though_the_control_plane_never_does(replicas: int) -> None:
    cluster = training({"roles": {"policy": {"replicas": replicas}}})
    last = cluster.pod("policy", replicas - 1).name
    cluster.lose_node(last)
    assert cluster.reconcile().delete == ()
    cluster.wait(44)
    assert cluster.reconcile().next_look == timedelta(seconds=1)
    cluster.wait(1)
    assert last in {removal.name for removal in cluster.reconcile().delete}
    assert cluster.tally("policy") == (0, 1)
    for index in range(replicas - 1):
        cluster.end_evicted(cluster.pod("policy", index).name)
    assert [i.life for i in cluster.reconcile().create] == [2] * replicas


def test_a_job_that_is_born_suspended_makes_nothing_to_lean_on() -> None:
    cluster = SmallCluster(make_job({"suspend": True, "storage": None, "output": None}))
    assert cluster.reconcile().support is None
    cluster.respec(suspend=False)
    support = cluster.reconcile().support
    assert support is not None
    assert (support.makes_storage, support.makes_output) == (True, True)
    cluster.respec(suspend=True)
    assert cluster.reconcile().support is not None  # it goes on from there


def test_a_checkpoint_that_is_polled_says_so_at_once() -> None:
    cluster = training()
    saved = CheckpointStatus(step=5, verified_at=cluster.now)
    cluster.poll(cluster.pod("policy").name, checkpoint=saved)
    cluster.reconcile()
    assert cluster.status.checkpoint == saved
