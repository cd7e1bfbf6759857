"""Five roles and three stages: the gang of actor and critic, servers that come and go, a reward model made first."""

from __future__ import annotations

from datetime import timedelta
from graphlib import TopologicalSorter

import pytest
from tests.unit.operator.small_cluster import DATA, MODEL, SmallCluster, make_job, ppo_spec

from alignment_api.contract.algorithms import STAGES
from alignment_api.contract.context import Failure, Outcome
from alignment_api.contract.platform import Platform
from alignment_api.contract.roles import ROLES
from alignment_api.contract.status import CheckpointStatus, EvaluationReport, Interval
from alignment_api.derived.stages import stages_of
from alignment_operator.plan.dependencies import PATIENCE

GANG = ("actor", "critic")
FROZEN = ("reference", "reward", "rollout")
ACCURACY = Interval(value=0.71, low=0.64, high=0.77, count=200)
BEATS_CHANCE = EvaluationReport(before={"accuracy": ACCURACY}, after={"accuracy": ACCURACY})


@pytest.fixture
def training() -> SmallCluster:
    """A PPO job with two rollout servers, in stage `train`."""
    cluster = SmallCluster(make_job(ppo_spec(rollout={"replicas": 2})))
    cluster.run_until("train")
    return cluster


def lives(cluster: SmallCluster) -> dict[str, int]:
    """Newest life of each role of the running stage."""
    return {line.role: line.life for line in cluster.status.instances if line.end is None}


def test_reward_functions_that_keep_a_network_are_said_to_the_end() -> None:
    cluster = SmallCluster(make_job(ppo_spec()))
    cluster.run_until("prepare")
    cluster.succeed(cluster.pod("prepare").name)
    cluster.change(
        cluster.pod("prepare").name,
        outcome=Outcome(result="succeeded", data=DATA, model=MODEL, functions_network="Operation not permitted"),
    )
    cluster.reconcile()
    said = cluster.condition("FunctionsOffline")
    assert said is not None
    assert (said.status, said.reason) == ("False", "NetworkKept")
    assert "Operation not permitted" in said.message
    cluster.run_until("train")
    assert cluster.condition("FunctionsOffline") == said


def test_nothing_is_said_of_reward_functions_without_network(training: SmallCluster) -> None:
    assert training.condition("FunctionsOffline") is None


@pytest.mark.parametrize("algorithm", STAGES)
def test_nobody_waits_for_whom_waits_for_him(algorithm: str) -> None:
    for stage in STAGES[algorithm]:
        TopologicalSorter(stage.waits).prepare()  # raises CycleError
        assert {role for roles in stage.waits.values() for role in roles} <= set(stage.roles)


def test_servers_wait_for_nobody_so_that_they_are_warm_when_a_trainer_starts() -> None:
    for stage in STAGES["ppo"]:
        assert not set(stage.waits) & set(FROZEN)


def test_the_stages_of_a_job_follow_from_its_rewards_and_placements() -> None:
    def roles(spec: dict[str, object]) -> list[tuple[str, ...]]:
        return [stage.roles for stage in stages_of(make_job(spec).spec)]

    assert roles(ppo_spec()) == [
        ("prepare",),
        ("policy",),
        ("actor", "critic", *FROZEN),
        ("evaluator", *FROZEN),
    ]
    function = [{"function": {"numericAnswer": {}}}]
    assert roles({"algorithm": {"grpo": {"klCoef": 0, "rewards": function}}}) == [
        ("prepare",),
        ("actor", "rollout"),
        ("evaluator", "rollout"),
    ]
    assert roles({"algorithm": {"ppo": {"rewards": function}}, "roles": {"critic": {"placement": "withActor"}}}) == [
        ("prepare",),
        ("actor", "reference", "rollout"),
        ("evaluator", "reference", "rollout"),
    ]


def test_each_stage_has_its_own_pods_and_attempts_count_on() -> None:
    cluster = SmallCluster(make_job(ppo_spec()))
    cluster.run_until("reward")
    assert lives(cluster) == {"policy": 1}
    cluster.run_until("train")
    assert lives(cluster) == {"actor": 2, "critic": 2, "reference": 1, "reward": 1, "rollout": 1}
    assert cluster.status.attempt == 2
    cluster.run_until("evaluate")
    assert lives(cluster) == {"evaluator": 1, "reference": 2, "reward": 2, "rollout": 2}
    assert cluster.status.attempt == 2
    cluster.do_well()
    cluster.reconcile()
    assert cluster.status.phase == "Complete"
    assert [stage.name for stage in cluster.status.stages] == ["prepare", "reward", "train", "evaluate"]


def test_a_stages_pods_are_made_in_one_order_whatever_was_recorded(training: SmallCluster) -> None:
    """Of the same state two passes make the same plan: here the evaluator's record is new, its servers' are not."""
    training.do_well()
    training.reconcile()  # the servers of stage `train` are told to go
    plan = training.plan()
    training.record(plan)
    assert [instance.role for instance in plan.create] == ["evaluator", "reference", "reward", "rollout", "rollout"]
    assert training.plan().create == plan.create


def test_a_stage_begins_once_every_server_of_the_former_one_has_been_told_to_go(training: SmallCluster) -> None:
    """The word may be refused or late: until it has arrived, two of a slot would serve under one name."""
    training.do_well()
    plan = training.plan()
    training.record(plan)
    servers = [removal.name for removal in plan.delete if training.pods[removal.name].role in FROZEN]
    assert (training.status.stage, len(servers), plan.create) == ("evaluate", 4, ())
    for name in servers:
        assert training.plan().create == ()
        training.delete(name)
    made = [instance.role for instance in training.plan().create]
    assert made == ["evaluator", "reference", "reward", "rollout", "rollout"]


def test_a_server_taken_away_and_wanted_again_comes_back_once_it_has_been_told_to_go(training: SmallCluster) -> None:
    training.scale("rollout", 1)
    training.record(training.plan())  # and the operator dies before it says so
    training.scale("rollout", 2)
    plan = training.reconcile()
    ready = training.condition("RolesReady")
    assert ready is not None
    (told,) = (removal.name for removal in plan.delete)
    assert (plan.create, ready.reason) == ((), "Replacing")
    assert ready.message == f"rollout waits for {told} to be told to go"
    assert [(instance.role, instance.index, instance.life) for instance in training.plan().create] == [
        ("rollout", 1, 2)
    ]


def test_everybody_is_told_whom_to_call() -> None:
    cluster = SmallCluster(make_job(ppo_spec()))
    peers = {}
    for _ in range(20):
        plan = cluster.reconcile()
        peers |= {(i.stage, i.role): i.peers for i in plan.create}
        if ("evaluate", "evaluator") in peers:
            break
        cluster.do_well()
    assert plan.support is not None
    assert set(plan.support.serving_roles) == {"actor", "critic", "evaluator", *FROZEN}
    assert peers["train", "actor"] == ("critic", *FROZEN)
    assert (peers["train", "rollout"], peers["train", "critic"]) == (("actor",), ())
    assert (peers["evaluate", "evaluator"], peers["evaluate", "rollout"]) == (FROZEN, ("evaluator",))
    assert peers["reward", "policy"] == ()


def test_the_gang_is_gated_until_every_server_is_ready() -> None:
    cluster = SmallCluster(make_job(ppo_spec(rollout={"replicas": 2})))
    cluster.run_until("reward")
    cluster.do_well()
    gates = {(i.role, i.index): i.gated for i in cluster.reconcile().create}
    assert gates == {
        ("actor", 0): True,
        ("critic", 0): True,
        ("reference", 0): False,
        ("reward", 0): False,
        ("rollout", 0): False,
        ("rollout", 1): False,
    }
    for role in FROZEN:
        cluster.start(cluster.pod(role).name)
    assert cluster.reconcile().release == ()
    cluster.start(cluster.pod("rollout", 1).name)
    assert set(cluster.reconcile().release) == {cluster.pod(role).name for role in GANG}


def test_after_a_while_one_server_of_each_kind_is_enough() -> None:
    cluster = SmallCluster(make_job(ppo_spec(rollout={"replicas": 2})))
    cluster.run_until("reward")
    cluster.do_well()
    cluster.reconcile()
    for role in FROZEN:
        cluster.start(cluster.pod(role).name)
    cluster.now += PATIENCE - timedelta(seconds=10)
    plan = cluster.reconcile()
    assert plan.release == ()
    assert plan.next_look is not None
    assert plan.next_look <= timedelta(seconds=10)
    cluster.now += timedelta(seconds=10)
    assert set(cluster.reconcile().release) == {cluster.pod(role).name for role in GANG}


@pytest.mark.parametrize("role", FROZEN)
def test_losing_a_server_restarts_no_trainer(training: SmallCluster, role: str) -> None:
    others = {pod.uid for pod in training.pods.values() if (pod.role, pod.index) != (role, 0)}
    name = training.pod(role).name
    training.lose_node(name)
    plan = training.reconcile()
    assert [(i.role, i.index) for i in plan.create] == [(role, 0)]
    assert [removal.name for removal in plan.delete] == [name]
    assert others <= {pod.uid for pod in training.pods.values()}
    assert (training.status.attempt, training.tally(role)) == (2, (0, 1))


def test_servers_are_added_and_taken_away_while_the_job_runs(training: SmallCluster) -> None:
    training.scale("rollout", 4)
    plan = training.reconcile()
    assert [(i.role, i.index, i.life) for i in plan.create] == [("rollout", 2, 1), ("rollout", 3, 1)]
    assert (plan.delete, plan.release) == ((), ())
    for index in (2, 3):
        training.start(training.pod("rollout", index).name)
    training.reconcile()
    training.scale("rollout", 1)
    plan = training.reconcile()
    assert plan.create == ()
    assert sorted(r.name for r in plan.delete) == [training.pod("rollout", index).name for index in (1, 2, 3)]
    assert training.status.attempt == 2


@pytest.mark.parametrize(("lost", "other"), [("actor", "critic"), ("critic", "actor")])
def test_actor_and_critic_restart_together_and_their_end_counts_once(
    training: SmallCluster, lost: str, other: str
) -> None:
    training.fail(training.pod(lost).name)
    plan = training.reconcile()
    assert {r.name for r in plan.delete} == {training.pod(other).name}
    assert (training.tally(lost), training.tally(other)) == ((1, 0), (0, 0))
    training.fail(training.pod(other).name, reason="CriticLost")
    assert training.reconcile().create == ()  # backs off for 10 s
    training.wait(60)
    plan = training.reconcile()
    assert [(i.role, i.life, i.attempt, i.gang) for i in plan.create] == [("actor", 3, 3, 2), ("critic", 3, 3, 2)]
    assert (training.tally(lost), training.tally(other)) == ((1, 0), (0, 0))


def test_the_next_attempt_waits_for_the_old_critic_too(training: SmallCluster) -> None:
    training.evict(training.pod("actor").name)
    critic = training.pod("critic").name
    training.reconcile()
    training.end_evicted(training.pod("actor").name)
    assert training.reconcile().create == ()
    condition = training.condition("RolesReady")
    assert condition is not None
    assert condition.message.startswith(f"actor waits for {critic} to end")
    training.wait(30)
    assert {i.role for i in training.reconcile().create} == set(GANG)


def test_a_new_attempt_is_gated_while_a_server_is_missing(training: SmallCluster) -> None:
    training.lose_node(training.pod("reward").name)
    training.fail(training.pod("critic").name)
    training.reconcile()
    training.wait(60)
    gates = {i.role: i.gated for i in training.reconcile().create}
    assert gates == {"actor": True, "critic": True}


def test_an_error_that_tells_of_another_is_not_the_one_that_counts(training: SmallCluster) -> None:
    training.fail(training.pod("actor").name, reason="CriticLost")
    training.change(training.pod("critic").name, phase="Failed", ready=False, exit_code=137, reason="OOMKilled")
    training.reconcile()
    assert (training.tally("actor"), training.tally("critic")) == ((0, 0), (1, 0))


def test_an_actors_error_becomes_the_critics_disruption_when_its_lost_node_shows_later(training: SmallCluster) -> None:
    training.fail(training.pod("actor").name, reason="CriticLost")
    training.reconcile()
    assert (training.tally("actor"), training.tally("critic")) == ((1, 0), (0, 0))
    training.lose_node(training.pod("critic").name)
    training.reconcile()
    assert (training.tally("actor"), training.tally("critic")) == ((0, 0), (0, 1))


def test_the_reward_models_figures_stand_at_their_stage() -> None:
    cluster = SmallCluster(make_job(ppo_spec()))
    cluster.run_until("reward")
    checkpoint = CheckpointStatus(step=30, verified_at=cluster.now)
    outcome = Outcome(result="succeeded", step=30, checkpoint=checkpoint, evaluation=BEATS_CHANCE)
    cluster.change(cluster.pod("policy").name, phase="Succeeded", ready=False, exit_code=0, outcome=outcome)
    cluster.reconcile()
    (stage,) = [stage for stage in cluster.status.stages if stage.name == "reward"]
    assert stage.evaluation == BEATS_CHANCE
    assert cluster.status.evaluation is None
    assert (cluster.status.stage, cluster.status.checkpoint, cluster.status.metrics) == ("train", None, {})


def test_a_reward_model_that_is_no_better_than_chance_ends_the_job_with_its_reason() -> None:
    cluster = SmallCluster(make_job(ppo_spec()))
    cluster.run_until("reward")
    message = "52.0% of 200 held-out pairs (95% interval 45.1% to 58.8%)"
    failure = Failure(reason="RewardModelNotAboveChance", message=message, retryable=False)
    outcome = Outcome(result="failed", failure=failure, evaluation=BEATS_CHANCE)
    cluster.change(cluster.pod("policy").name, phase="Failed", ready=False, exit_code=1, outcome=outcome)
    plan = cluster.reconcile()
    condition = cluster.condition("Failed")
    assert condition is not None
    assert (condition.reason, condition.message) == ("RewardModelNotAboveChance", f"policy: {message}")
    assert plan.create == ()
    assert next(s for s in cluster.status.stages if s.name == "reward").evaluation == BEATS_CHANCE


@pytest.mark.parametrize(
    ("gang", "status", "reason"), [("podGroup", "True", "PodGroup"), ("none", "False", "NotConfigured")]
)
def test_how_a_gang_is_scheduled_is_said(gang: str, status: str, reason: str) -> None:
    cluster = SmallCluster(make_job(ppo_spec()), Platform.model_validate({"gang": gang}))
    cluster.run_until("reward")
    assert cluster.condition("GangScheduling") is None  # a gang of one is scheduled as a whole by itself
    cluster.run_until("train")
    condition = cluster.condition("GangScheduling")
    assert condition is not None
    assert (condition.status, condition.reason) == (status, reason)
    assert "the gang's 2 pods" in condition.message


def test_a_model_too_large_for_its_critic_is_told_before_the_gang_starts() -> None:
    cluster = SmallCluster(make_job(ppo_spec(critic={"memory": "10Mi"})))
    for _ in range(10):
        cluster.reconcile()
        if cluster.status.phase == "Failed":
            break
        cluster.do_well()
    condition = cluster.condition("Failed")
    assert condition is not None
    # 16 bytes x 1,000,000 parameters = 15.3 MiB
    assert (condition.reason, "critic needs" in condition.message) == ("DoesNotFit", True)
    assert not [pod for pod in cluster.pods.values() if ROLES[pod.role].trainable and pod.stage == "train"]
