"""A job that has started is managed to its end, whatever it says now; one that asks to start is asked everything."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.operator.small_cluster import START, SmallCluster, make_job

from alignment_api.contract.stored import Unreadable, read_stored_job
from alignment_api.yaml.manifest import InvalidManifest, read_begun_manifest
from alignment_operator.kube.world import merge_patch, unreadable_status
from alignment_operator.resources.objects import build_config

LATER = datetime(2026, 11, 26, tzinfo=UTC)
LOOSER: dict[str, dict[str, Any]] = {
    "sizes that do not fit together": {
        "algorithm": {"ppo": {"rewards": [{"function": {"numericAnswer": {}}}], "maxNewTokens": 4096}},
        "training": {"batchSize": 48},
    },
    "roles that the algorithm does not have": {"roles": {"critic": {"gpus": 1, "processes": 2}}},
    "a source out of its volume": {"model": {"source": "pvc://models/../base"}},
    "numbers out of bounds": {"training": {"learningRate": -1, "epochs": 0}, "budgets": {"disruptions": 10**9}},
}
"""What releases have let in and this one would not."""
NEWER: dict[str, dict[str, Any]] = {
    "an option that is not known": {"algorithm": {"dpo": {"beta": 0.1, "entropyBonus": 0.5}}},
    "a word that is not known": {"roles": {"evaluator": {"placement": "reserved"}}},
    "a value of another type": {"training": {"microBatchTokens": "most"}},
    "a scheme that is not known": {"data": {"source": "gs://bucket/pairs.jsonl"}},
    "a field that is not known": {"spotFallback": {"afterSeconds": 600}},
}
"""What a newer release has let in, seen after a rollback."""


def stored(spec: dict[str, Any], **status: Any) -> dict[str, Any]:
    """A job as the apiserver holds it."""
    job: dict[str, Any] = json.loads(make_job().model_dump_json(exclude_unset=True))
    return job | {"spec": job["spec"] | copy.deepcopy(spec), "status": status}


@pytest.mark.parametrize("what", LOOSER | NEWER)
def test_a_started_job_is_managed_to_its_end(what: str) -> None:
    raw = stored((LOOSER | NEWER)[what], phase="Running", startedAt="2026-01-01T12:00:00Z")
    cluster = SmallCluster(read_stored_job(raw))
    cluster.run_until("train")
    lead = next(pod for pod in cluster.pods.values() if cluster.leads(pod) and pod.stage == "train")
    cluster.lose_node(lead.name)
    cluster.wait(120)
    cluster.vanish(lead.name)
    for _ in range(3):
        cluster.reconcile()
        cluster.do_well(holding="train")
    assert cluster.tally(lead.role) == (0, 1), "what is lost is counted"
    assert cluster.pod(lead.role).life == lead.life + 1, "and replaced"
    for _ in range(10):
        cluster.reconcile()
        cluster.do_well()
    assert cluster.status.phase == "Complete"


@pytest.mark.parametrize("what", LOOSER | NEWER)
def test_the_same_job_is_refused_where_it_asks_to_start(what: str) -> None:
    cluster = SmallCluster(read_stored_job(stored((LOOSER | NEWER)[what])))
    plan = cluster.reconcile()
    assert (plan.create, plan.support) == ((), None)
    admitted = cluster.condition("Admitted")
    assert admitted is not None
    assert (admitted.status, admitted.reason) == ("False", "Refused")
    assert admitted.message.startswith("spec.")
    assert cluster.plan().status == cluster.status, "and every pass says the same"


def test_a_refusal_names_every_mistake_with_its_fix() -> None:
    cluster = SmallCluster(read_stored_job(stored(LOOSER["roles that the algorithm does not have"] | {"image": ""})))
    cluster.reconcile()
    admitted = cluster.condition("Admitted")
    assert admitted is not None
    assert admitted.message.split("; ", 1)[0].startswith("spec.image: found")
    assert "spec.roles.critic: found gpus: 1 and processes: 2; gpus and processes exclude each other" in (
        admitted.message
    )


@pytest.mark.parametrize("what", NEWER)
def test_pods_are_handed_what_was_let_in_and_one_of_an_older_release_says_so(what: str) -> None:
    job = read_stored_job(stored(NEWER[what], startedAt="2026-01-01T12:00:00Z"))
    handed = json.loads(build_config(job, 2)["data"]["job.yaml"])["spec"]
    assert _contains(handed, NEWER[what])
    with pytest.raises(InvalidManifest, match=r"spec\."):
        read_begun_manifest(build_config(job, 2)["data"]["job.yaml"])


def _contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return all(name in whole and _contains(whole[name], value) for name, value in part.items())
    return bool(whole == part)


def test_a_job_of_an_algorithm_from_the_future_is_left_alone_and_says_so() -> None:
    raw = stored({"algorithm": {"bco": {}}}, phase="Running", startedAt="2026-01-01T12:00:00Z", attempt=2)
    with pytest.raises(Unreadable) as error:
        read_stored_job(raw)
    status = unreadable_status(raw, error.value, LATER)
    (admitted,) = status["conditions"]
    assert (status["phase"], status["attempt"]) == ("Running", 2)
    assert (admitted["status"], admitted["reason"]) == ("Unknown", "NotUnderstood")
    assert admitted["message"] == (
        "spec.algorithm: found bco; this release knows sft, kto, dpo, ipo, orpo, simpo, reward, ppo, grpo; its pods "
        "are left alone: install the release that started it"
    )
    again = unreadable_status(raw | {"status": status}, error.value, datetime(2026, 11, 27, tzinfo=UTC))
    assert again == status, "and nothing is written twice"


def test_a_job_without_an_algorithm_is_refused_in_the_words_of_the_rule() -> None:
    raw = stored({"algorithm": {}, "image": ""})
    with pytest.raises(Unreadable) as error:
        read_stored_job(raw)
    (admitted,) = unreadable_status(raw, error.value, LATER)["conditions"]
    assert (admitted["status"], admitted["reason"]) == ("False", "Refused")
    assert "spec.algorithm: found none; exactly one algorithm must be given" in admitted["message"]
    assert "spec.image: found" in admitted["message"]


def test_a_pass_writes_what_it_changes_and_nothing_else() -> None:
    theirs = {"type": "acme.io/Budgeted", "status": "True", "reason": "Paid", "message": "", "lastTransitionTime": "t"}
    before = {"phase": "Pending", "eta": "2h", "progress": {"step": 1, "totalSteps": 9}, "conditions": [theirs]}
    after = {"phase": "Running", "progress": {"step": 2, "totalSteps": 9}, "conditions": [theirs]}
    assert merge_patch(before, after) == {"phase": "Running", "progress": {"step": 2}, "eta": None}
    assert merge_patch(after, after) == {}
    assert merge_patch({}, after) == after


def test_conditions_of_others_and_fields_of_the_future_outlive_a_pass() -> None:
    theirs = {
        "type": "acme.io/Budgeted",
        "status": "True",
        "reason": "Paid",
        "lastTransitionTime": "2026-01-01T12:00:00Z",
    }
    raw = stored({}, startedAt="2026-01-01T12:00:00Z", conditions=[theirs], cost={"usd": 1.5})
    cluster = SmallCluster(read_stored_job(raw), now=START)
    cluster.run_until("train")
    written = json.loads(cluster.status.model_dump_json(exclude_none=True))
    assert written["cost"] == {"usd": 1.5}
    assert {condition["type"]: condition for condition in written["conditions"]}["acme.io/Budgeted"] == theirs | {
        "message": ""
    }
    assert cluster.condition("Admitted") is not None
