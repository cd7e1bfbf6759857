"""The learning rate of a job that names none: one answer in operator, alignctl, trainer and words."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from tests.unit.operator.small_cluster import make_job

from alignment_api.contract.algorithms import OPTIONS
from alignment_api.contract.handed import DEFAULTS
from alignment_api.contract.rewards import RewardTraining
from alignment_api.contract.spec import AlignmentJobSpec, Training
from alignment_api.contract.status import AlignmentJobStatus, LearningRateReport
from alignment_api.derived.learning_rate import learning_rate_of
from alignment_api.derived.reward_stage import spec_of_stage
from alignment_operator.resources.objects import job_as_read
from alignment_trainer.loop.build import loop_options

REWARDS = {"rewards": [{"function": {"numericAnswer": {}}}]}
TRAINED = {"rewards": [{"train": {"preferences": {"source": "pvc://data/judged.jsonl"}}}]}


def spec(algorithm: str, training: dict[str, Any] | None = None, **options: Any) -> AlignmentJobSpec:
    value: dict[str, Any] = {"model": {"source": "pvc://models/base"}, "data": {"source": "pvc://data/rows.jsonl"}}
    if algorithm in ("ppo", "grpo"):
        options = REWARDS | options
    return AlignmentJobSpec.model_validate(
        value | {"algorithm": {algorithm: options}, "training": {"microBatchTokens": 1024} | (training or {})}
    )


def peak(spec: AlignmentJobSpec) -> float:
    """What the trainer's optimizer is given in the step in which warm-up ends."""
    return max(map(loop_options(spec, 100).learning_rate, range(100)))


@pytest.mark.parametrize(
    ("algorithm", "whole", "adapters"),
    [
        ("sft", 2e-5, 2e-4),
        ("dpo", 5e-7, 5e-6),
        ("ipo", 5e-7, 5e-6),
        ("kto", 5e-7, 5e-6),
        ("simpo", 5e-7, 5e-6),
        ("orpo", 5e-6, 5e-5),
        ("reward", 1e-5, 1e-4),
        ("ppo", 1e-6, None),
        ("grpo", 1e-6, None),
    ],
)
def test_a_job_that_names_none_has_its_algorithms_and_adapters_ten_times_that(
    algorithm: str, whole: float, adapters: float | None
) -> None:
    found = learning_rate_of(spec(algorithm))
    assert found == LearningRateReport(value=whole, why=f"the default of {algorithm}")
    assert peak(spec(algorithm)) == whole
    if adapters is not None:
        beside = spec(algorithm, {"lora": {}})
        assert learning_rate_of(beside) == LearningRateReport(
            value=adapters, why=f"the default of {algorithm} with lora"
        )
        assert peak(beside) == adapters


@pytest.mark.parametrize("algorithm", OPTIONS)
@pytest.mark.parametrize("lora", [{}, {"lora": {}}])
def test_what_a_manifest_names_is_what_it_trains_with(algorithm: str, lora: dict[str, Any]) -> None:
    named = spec(algorithm, {"learningRate": 3e-6} | lora)
    assert learning_rate_of(named) == LearningRateReport(value=3e-6, why="spec.training.learningRate says so")
    assert peak(named) == 3e-6


def test_the_fields_words_name_the_default_of_every_algorithm() -> None:
    words = str(Training.model_fields["learning_rate"].description)
    listed = words.split("Default:")[1].split("With `lora`")[0].replace("\n", " ")
    told = {
        name: float(number)
        for number, names in re.findall(r"(\d+e-\d) for ([a-z, ]+)", listed)
        for name in re.findall(r"[a-z]+", names.replace(" and ", " "))
    }
    assert told == {name: options.usual_learning_rate.whole for name, options in OPTIONS.items()}


def test_the_reward_model_of_a_job_keeps_its_own() -> None:
    made = spec_of_stage(spec("ppo", {"learningRate": 3e-6}, **TRAINED), "reward")
    own = RewardTraining.model_fields["learning_rate"].default
    assert learning_rate_of(made).value == own == OPTIONS["reward"].usual_learning_rate.whole


def test_pods_of_any_release_are_handed_the_number() -> None:
    """One that knows another default, or none, trains with what status says."""
    job = job_as_read(make_job({"algorithm": {"sft": {}}}))
    assert job.spec.training.learning_rate == 2e-5
    assert ["spec", "training", "learningRate"] not in json.loads((job.metadata.annotations or {})[DEFAULTS])


def test_a_job_goes_on_with_what_it_began_with_whatever_a_newer_release_would_take() -> None:
    begun = AlignmentJobStatus(learning_rate=LearningRateReport(value=4e-5, why="the default of sft"))
    job = make_job({"algorithm": {"sft": {}}}).model_copy(update={"status": begun})
    assert job_as_read(job).spec.training.learning_rate == 4e-5
