"""A stored job is read whatever release wrote it: its bounds, its rules, its fields and its words."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.status import AlignmentJobStatus, Condition
from alignment_api.contract.stored import Unreadable, read_stored_job, read_stored_status
from alignment_api.rules.check import why_not

START = "2026-11-20T00:00:00Z"
JOB: dict[str, Any] = {
    "apiVersion": "alignment.run/v1alpha1",
    "kind": "AlignmentJob",
    "metadata": {"name": "helpful", "namespace": "team", "uid": "u", "managedFields": [{"manager": "kubectl"}]},
    "spec": {
        "model": {"source": "pvc://models/base"},
        "data": {"source": "pvc://data/prompts.jsonl"},
        "algorithm": {"ppo": {"rewards": [{"function": {"numericAnswer": {}}}]}},
    },
    "status": {"phase": "Running", "startedAt": START},
}


def stored(path: str = "", value: Any = None) -> dict[str, Any]:
    """JOB with one value set."""
    job = copy.deepcopy(JOB)
    parent: Any = job
    *above, name = path.split(".")
    for part in above:
        parent = parent.setdefault(part, {})
    parent[name] = value
    return job


def spec_as_written(job: AlignmentJob) -> dict[str, Any]:
    written: dict[str, Any] = json.loads(job.model_dump_json(exclude_unset=True))["spec"]
    return written


@pytest.mark.parametrize(
    ("path", "value", "read"),
    [
        ("spec.training.batchSize", 48, lambda job: job.spec.training.batch_size == 48),
        ("spec.training.batchSize", 0, lambda job: job.spec.training.batch_size == 0),
        ("spec.training.batchSize", 10**12, lambda job: job.spec.training.batch_size == 10**12),
        ("spec.roles.actor.replicas", 12_000_000, lambda job: job.spec.roles.actor.replicas == 12_000_000),
        ("spec.model.source", "pvc://models/../base", lambda job: job.spec.model.source == "pvc://models/../base"),
        ("spec.roles.actor.memory", "0", lambda job: job.spec.roles.actor.memory == "0"),
        ("spec.roles.actor.cpu", 4, lambda job: job.spec.roles.actor.cpu == "4"),
        ("spec.algorithm.dpo", {}, lambda job: job.spec.algorithm.name == "dpo"),
        ("metadata.name", "7b.dpo", lambda job: job.metadata.name == "7b.dpo"),
    ],
)
def test_what_a_stricter_release_would_refuse_is_read_as_it_stands(path: str, value: Any, read: Any) -> None:
    job = read_stored_job(stored(path, value))
    assert read(job)
    if (path, value) != ("spec.roles.actor.cpu", 4):
        assert why_not(job), "and would not be let in now"
        assert spec_as_written(job) == stored(path, value)["spec"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.training.optimizer", "muon"),
        ("spec.algorithm.ppo.rewards", [{"judge": {"model": "hf://org/judge"}, "weight": 1.0}]),
        ("spec.spotFallback", {"afterSeconds": 600}),
        ("spec.training.microBatchTokens", "most"),
        ("spec.training.sharding", "fsdp3"),
        ("spec.roles.rollout.placement", "reserved"),
        ("spec.algorithm.ppo.rewards", [{"function": "numericAnswer"}]),
        ("spec.checkpoint", "often"),
        ("spec.data.evaluation", {"fraction": "tenth", "every": [1, 2]}),
    ],
)
def test_what_a_newer_release_let_in_is_written_again_as_it_was(path: str, value: Any) -> None:
    job = read_stored_job(stored(path, value))
    assert spec_as_written(job) == stored(path, value)["spec"]
    suspended = job.model_copy(update={"spec": job.spec.model_copy(update={"suspend": True})})
    assert spec_as_written(suspended) == stored(path, value)["spec"] | {"suspend": True}
    (problem, *_) = why_not(job)
    assert problem.startswith(path.removesuffix(".evaluation")), "a job that asks to start is told"


def test_a_value_that_cannot_be_read_stands_at_its_default() -> None:
    job = read_stored_job(stored("spec.training", {"microBatchTokens": "most", "sharding": "fsdp3", "epochs": 3}))
    assert (job.spec.training.micro_batch_tokens, job.spec.training.sharding, job.spec.training.epochs) == (
        "auto",
        None,
        3,
    )


def test_a_status_of_a_newer_release_keeps_its_fields_and_words() -> None:
    raw: dict[str, Any] = {
        "cost": {"usd": 1.5},
        "stage": "pretrain",
        "stages": [{"name": "pretrain", "startedAt": START, "tokens": 7}],
        "instances": [{"role": "actor", "index": 0, "life": 3, "end": "rejected", "node": "n1"}],
        "roles": [{"name": "actor", "pool": "reserved", "window": {"failures": 1}}],
        "conditions": [
            {"type": "acme.io/Budgeted", "status": "True", "reason": "Paid", "lastTransitionTime": START, "why": "x"}
        ],
    }
    status = read_stored_status(raw)
    assert status.instances[0].end == "rejected"
    written = status.model_copy(update={"attempt": 2}).model_dump(mode="json", exclude_none=True, exclude_unset=True)
    assert written == raw | {"attempt": 2}
    assert status.conditions[0] != Condition.model_validate(raw["conditions"][0] | {"why": None}, extra="ignore")


def test_two_readings_are_equal_and_one_that_has_more_is_not() -> None:
    assert read_stored_status(JOB["status"]) == read_stored_status(JOB["status"])
    assert read_stored_status(JOB["status"]) == AlignmentJobStatus.model_validate(JOB["status"])
    assert read_stored_status(JOB["status"] | {"cost": 1}) != read_stored_status(JOB["status"])


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (
            "spec.algorithm",
            {"bco": {}},
            r"spec\.algorithm: found bco; this release knows sft, kto, dpo, ipo, orpo, simpo, reward, ppo, grpo",
        ),
        ("spec.algorithm", {}, r"spec\.algorithm: found none"),
        ("spec.model", {}, r"model: field required"),
        ("spec", {}, r"model: field required"),
        ("status.attempt", "second", r"status\.attempt is not written as this release writes it"),
        ("status.instances", [{"role": "actor", "index": 0, "life": "a1"}], r"status\.instances is not written"),
    ],
)
def test_what_cannot_be_managed_is_said(path: str, value: Any, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        read_stored_job(stored(path, value))


def test_a_report_that_cannot_be_read_is_left_out_and_left_alone() -> None:
    status = read_stored_status({"phase": "Running", "attempt": 2, "progress": "half", "metrics": {"loss": "low"}})
    assert (status.attempt, status.progress, status.metrics) == (2, None, {})
    assert "progress" not in status.model_dump(exclude_unset=True)


def test_metadata_that_is_kubernetes_own_does_not_ride_along() -> None:
    assert "managedFields" not in read_stored_job(JOB).metadata.model_dump()
