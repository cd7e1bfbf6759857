"""From the first pod to the last: stages, gates, facts."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.operator.small_cluster import DATA, MODEL, START, SmallCluster, make_job

from alignment_api.contract.algorithms import STAGES
from alignment_api.contract.context import Outcome
from alignment_api.contract.roles import ROLES
from alignment_api.contract.status import CheckpointStatus, LearningRateReport, PrecisionReport, Progress
from alignment_operator.plan.types import Plan


@pytest.fixture
def cluster() -> SmallCluster:
    return SmallCluster()


def created(plan: Plan) -> list[tuple[str, int, int]]:
    return [(instance.role, instance.index, instance.life) for instance in plan.create]


def test_a_job_passes_through_its_stages_and_completes(cluster: SmallCluster) -> None:
    seen = []
    for _ in range(12):
        seen += [(cluster.plan().status.stage, entry) for entry in created(cluster.reconcile())]
        cluster.do_well()
    assert seen == [
        ("prepare", ("prepare", 0, 1)),
        ("prepare", ("reference", 0, 1)),
        ("train", ("policy", 0, 1)),
        ("evaluate", ("evaluator", 0, 1)),
    ]
    assert cluster.status.phase == "Complete"
    assert [(stage.name, stage.finished_at is not None) for stage in cluster.status.stages] == [
        ("prepare", True),
        ("train", True),
        ("evaluate", True),
    ]
    assert cluster.status.attempt == 1
    assert cluster.pods == {}


def test_a_complete_job_keeps_no_supporting_objects_and_needs_no_other_look(cluster: SmallCluster) -> None:
    for _ in range(12):
        cluster.reconcile()
        cluster.do_well()
    plan = cluster.plan()
    assert plan.support is None
    assert plan.next_look is None
    assert plan.status == cluster.status


def test_reference_servers_stay_gated_until_the_data_is_good(cluster: SmallCluster) -> None:
    plan = cluster.reconcile()
    assert {instance.role: instance.gated for instance in plan.create} == {"prepare": False, "reference": True}
    assert cluster.reconcile().release == ()
    cluster.start(cluster.pod("prepare").name)
    assert cluster.reconcile().release == (cluster.pod("reference").name,)


def test_a_gate_that_was_opened_is_not_closed_when_prepare_is_replaced(cluster: SmallCluster) -> None:
    cluster.run_until("prepare")
    cluster.vanish(cluster.pod("prepare").name)
    cluster.reconcile()
    assert cluster.pod("prepare").life == 2
    assert not cluster.pod("prepare").ready
    assert not cluster.pod("reference").gated


def test_a_server_that_is_replaced_while_prepare_is_not_ready_waits_for_it(cluster: SmallCluster) -> None:
    cluster.run_until("prepare")
    cluster.vanish(cluster.pod("prepare").name)
    cluster.vanish(cluster.pod("reference").name)
    gates = {instance.role: instance.gated for instance in cluster.reconcile().create}
    assert gates == {"prepare": False, "reference": True}


def test_a_server_that_is_replaced_while_prepare_backs_off_waits_for_it(cluster: SmallCluster) -> None:
    cluster.run_until("prepare")
    cluster.fail(cluster.pod("prepare").name)
    cluster.vanish(cluster.pod("reference").name)
    assert {instance.role: instance.gated for instance in cluster.reconcile().create} == {"reference": True}


def test_nobody_waits_for_a_role_that_waits_for_it() -> None:
    for stages in STAGES.values():
        for stage in stages:
            ready: set[str] = set()
            for _ in stage.roles:
                ready |= {role for role in stage.roles if set(stage.waits.get(role, ())) <= ready}
            assert ready == set(stage.roles), f"{stage.name}: {set(stage.roles) - ready} wait for each other"
            assert set(stage.roles) <= ROLES.keys()


def test_the_lead_calls_the_servers_of_its_stage_and_they_ask_it_what_it_has_pinned(cluster: SmallCluster) -> None:
    peers = {instance.role: instance.peers for instance in cluster.reconcile().create}
    assert peers == {"prepare": ("reference",), "reference": ("prepare",)}


@pytest.mark.parametrize("algorithm", [{"orpo": {}}, {"simpo": {}}, {"dpo": {"referenceFree": True}}], ids=str)
def test_algorithms_without_a_reference_have_no_pods_and_no_service_for_one(algorithm: dict[str, Any]) -> None:
    cluster = SmallCluster(make_job({"algorithm": algorithm}))
    plan = cluster.reconcile()
    assert created(plan) == [("prepare", 0, 1)]
    assert plan.support is not None
    assert plan.support.serving_roles == ()


def test_ipo_compares_with_a_reference_as_dpo_does() -> None:
    assert created(SmallCluster(make_job({"algorithm": {"ipo": {}}})).reconcile()) == [
        ("prepare", 0, 1),
        ("reference", 0, 1),
    ]


def test_a_reference_in_the_policys_process_has_no_pods_and_no_service() -> None:
    cluster = SmallCluster(make_job({"roles": {"reference": {"placement": "withPolicy"}}}))
    plan = cluster.reconcile()
    assert created(plan) == [("prepare", 0, 1)]
    assert plan.create[0].peers == ()
    assert plan.support is not None
    assert plan.support.serving_roles == ()


def test_a_lead_that_exits_well_without_an_outcome_has_failed(cluster: SmallCluster) -> None:
    cluster.run_until("train")
    cluster.change(cluster.pod("policy").name, phase="Succeeded", exit_code=0, ready=False)
    cluster.reconcile()
    assert cluster.status.stage == "train"
    assert cluster.tally("policy") == (1, 0)


def test_a_gang_has_done_its_stage_when_its_last_pod_has() -> None:
    cluster = SmallCluster(make_job({"roles": {"policy": {"replicas": 2}}}))
    cluster.run_until("train")
    cluster.succeed(cluster.pod("policy", 0).name)
    cluster.reconcile()
    assert cluster.status.stage == "train"
    cluster.change(cluster.pod("policy", 1).name, phase="Succeeded", exit_code=0, ready=False)  # the first speaks
    cluster.reconcile()
    assert cluster.status.stage == "evaluate"
    assert cluster.tally("policy") == (0, 0)


def test_a_trainer_that_finishes_while_it_is_evicted_has_finished(cluster: SmallCluster) -> None:
    cluster.run_until("train")
    name = cluster.pod("policy").name
    cluster.evict(name)
    cluster.reconcile()
    assert cluster.tally("policy") == (0, 1)
    cluster.succeed(name)
    cluster.reconcile()
    assert cluster.status.stage == "evaluate"
    assert cluster.status.attempt == 1


def test_facts_go_from_outcomes_into_status(cluster: SmallCluster) -> None:
    cluster.run_until("train")
    assert (cluster.status.data, cluster.status.model) == (DATA, MODEL)
    condition = cluster.condition("DataReady")
    assert condition is not None
    assert condition.message == "900 rows to train on, 100 held out (preferences)"
    committed = CheckpointStatus(step=40, verified_at=START)
    cluster.change(
        cluster.pod("policy").name,
        phase="Succeeded",
        outcome=Outcome(result="succeeded", step=40, checkpoint=committed),
    )
    cluster.reconcile()
    assert cluster.status.checkpoint == committed
    assert cluster.status.artifacts.model == "pvc://results/helpful/model"
    assert cluster.status.artifacts.evaluation is None


def test_facts_that_prepare_tells_while_it_runs_are_known_before_it_ends(cluster: SmallCluster) -> None:
    cluster.reconcile()
    name = cluster.pod("prepare").name
    cluster.start(name)
    cluster.poll(name, data=DATA, model=MODEL)
    cluster.reconcile()
    assert cluster.status.data == DATA
    cluster.change(name, status=None)
    cluster.reconcile()
    assert cluster.status.model == MODEL


def test_a_poll_refuses_no_job_and_the_outcome_of_prepare_has_the_last_word(cluster: SmallCluster) -> None:
    cluster.reconcile()
    name = cluster.pod("prepare").name
    cluster.start(name)
    cluster.poll(name, data=DATA, model=MODEL.model_copy(update={"parameters": 10**15}))
    cluster.reconcile()
    assert cluster.status.phase == "Running"
    cluster.succeed(name)
    cluster.run_until("train")
    assert cluster.status.model == MODEL


def test_what_others_tell_of_data_and_model_is_not_taken(cluster: SmallCluster) -> None:
    cluster.run_until("train")
    other = MODEL.model_copy(update={"parameters": 10**15})
    cluster.poll(cluster.pod("policy").name, model=other, data=DATA.model_copy(update={"rows": 1}))
    cluster.reconcile()
    assert (cluster.status.model, cluster.status.data) == (MODEL, DATA)
    assert cluster.status.phase == "Running"


def test_what_an_older_attempt_saves_late_is_not_taken(cluster: SmallCluster) -> None:
    """It runs on where nobody reaches it; a newer attempt has claimed the storage since."""
    cluster.run_until("train")
    zombie = cluster.pod("policy")
    cluster.fail(zombie.name)
    for _ in range(3):
        cluster.reconcile()
        cluster.wait(10)
    assert cluster.status.attempt == 2
    cluster.pods[zombie.name] = replace(zombie, node_lost=True)
    cluster.poll(zombie.name, checkpoint=CheckpointStatus(step=900, verified_at=cluster.now))
    cluster.reconcile()
    assert cluster.status.checkpoint is None
    assert cluster.status.furthest_step == 0


def test_the_precision_that_prepare_told_stays_to_the_end(cluster: SmallCluster) -> None:
    decided = PrecisionReport(value="fp32", why="the CPU of `prepare` has no bf16 in hardware")
    cluster.reconcile()
    name = cluster.pod("prepare").name
    cluster.start(name)
    cluster.poll(name, data=DATA, model=MODEL, precision=decided)
    cluster.run_until("train")
    assert cluster.status.precision == decided


def test_the_learning_rate_of_a_job_is_shown_at_once_and_stays_to_the_end() -> None:
    cluster = SmallCluster(make_job({"algorithm": {"orpo": {}}}))
    cluster.reconcile()
    assert cluster.status.learning_rate == LearningRateReport(value=5e-6, why="the default of orpo")
    begun = LearningRateReport(value=8e-6, why="the default of orpo in the release that admitted it")
    admitted = cluster.status.model_copy(update={"learning_rate": begun})
    cluster.job = cluster.job.model_copy(update={"status": admitted})
    cluster.run_until("train")
    assert cluster.status.learning_rate == begun


def test_a_checkpoint_of_an_older_pod_does_not_replace_a_newer_one(cluster: SmallCluster) -> None:
    cluster.run_until("train")
    first = cluster.pod("policy").name
    old = CheckpointStatus(step=100, verified_at=START)
    cluster.change(first, phase="Failed", exit_code=1, outcome=Outcome(result="failed", checkpoint=old))
    cluster.reconcile()
    assert cluster.status.checkpoint == old
    cluster.wait(10)
    cluster.reconcile()
    cluster.start(cluster.pod("policy").name)
    new = CheckpointStatus(step=60, verified_at=START + timedelta(hours=1))  # the newest was damaged: it fell back
    cluster.poll(cluster.pod("policy").name, checkpoint=new)
    cluster.reconcile()
    assert cluster.status.checkpoint == new
    assert first in cluster.pods


def test_progress_changes_with_the_step_alone(cluster: SmallCluster) -> None:
    cluster.run_until("train")
    name = cluster.pod("policy").name
    cluster.poll(name, progress=Progress(step=412, total_steps=781, tokens_per_second=9.5, eta_seconds=7800))
    cluster.reconcile()
    assert (cluster.status.progress_text, cluster.status.eta) == ("412/781", "2h10m")
    before = cluster.status
    cluster.poll(name, progress=Progress(step=412, total_steps=781, tokens_per_second=9.4, eta_seconds=7790))
    cluster.reconcile()
    assert cluster.status == before
    cluster.wait(15)
    cluster.poll(name, progress=Progress(step=413, total_steps=781, eta_seconds=7700), metrics={"loss": 0.5})
    cluster.reconcile()
    assert cluster.status.progress_text == "413/781"
    assert cluster.status.metrics == {"loss": 0.5}


def test_progress_is_written_four_times_a_minute_but_its_end_and_a_new_start_at_once(cluster: SmallCluster) -> None:
    cluster.run_until("train")
    name, written = cluster.pod("policy").name, []
    for step in (7, 8, 9, 10, 11, 3, 20):
        cluster.poll(name, progress=Progress(step=step, total_steps=20))
        cluster.reconcile()
        written.append(cluster.status.progress_text)
        cluster.wait(5)
    assert written == ["7/20", "7/20", "7/20", "10/20", "10/20", "3/20", "20/20"]


def test_progress_starts_anew_with_each_stage_and_ends_full(cluster: SmallCluster) -> None:
    cluster.run_until("train")
    cluster.poll(cluster.pod("policy").name, progress=Progress(step=780, total_steps=781))
    cluster.reconcile()
    cluster.succeed(cluster.pod("policy").name)
    cluster.reconcile()
    assert cluster.status.stage == "evaluate"
    assert cluster.status.progress is None
    cluster.run_until("evaluate")
    name = cluster.pod("evaluator").name
    cluster.poll(name, progress=Progress(step=3, total_steps=4))
    cluster.reconcile()
    cluster.succeed(name)
    cluster.reconcile()
    assert cluster.status.progress_text == "4/4"
    assert cluster.status.eta is None


def test_a_quiet_hour_writes_nothing(cluster: SmallCluster) -> None:
    cluster.run_until("train")
    cluster.reconcile()
    before = cluster.status
    for _ in range(12):
        cluster.wait(300)
        plan = cluster.reconcile()
        assert plan.status == before
        assert (plan.create, plan.delete, plan.release) == ((), (), ())
