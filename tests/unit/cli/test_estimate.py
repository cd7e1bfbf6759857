"""How long a job will take: work counted by hand, time by arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_cli.estimate import Work, duration_range, measured_rate, work_of

PAIR = {"prompt": "p" * 40, "chosen": "c" * 80, "rejected": "r" * 80}
"""Of 200 letters: 50 tokens."""


def spec(tmp_path: Path, algorithm: dict[str, Any], rows: int = 40, **training: Any) -> AlignmentJobSpec:
    (tmp_path / "rows.jsonl").write_text((json.dumps(PAIR) + "\n") * rows)
    source = f"file://{tmp_path}/rows.jsonl"
    return AlignmentJobSpec.model_validate(
        {
            "model": {"source": f"file://{tmp_path}/model"},
            "data": {"source": source, "evaluation": {"fraction": 0.25}},
            "algorithm": algorithm,
            "training": training,
        }
    )


def test_work_of_dpo_counts_reference_training_and_held_out_rows(tmp_path: Path) -> None:
    """5 steps of 8 pairs: 40 pairs are trained on; the reference sees them and 10 held-out ones too."""
    work = work_of(spec(tmp_path, {"dpo": {}}, batchSize=8))
    assert work is not None
    assert work.trained == 40 * 50
    assert work.forward == (40 + 10) * 50 + 10 * 50


def test_steps_bound_the_work_and_the_reference_with_it(tmp_path: Path) -> None:
    work = work_of(spec(tmp_path, {"dpo": {}}, batchSize=8, maxSteps=2))
    assert work is not None
    assert work.trained == 16 * 50
    assert work.forward == (16 + 10) * 50 + 10 * 50


def test_beside_adapters_a_backward_pass_costs_as_much_as_a_forward_pass(tmp_path: Path) -> None:
    """No product for the gradient of a frozen weight: 4 FLOPs where there were 6."""
    whole, beside = (work_of(spec(tmp_path, {"orpo": {}}, batchSize=8, **more)) for more in ({}, {"lora": {}}))
    assert whole is not None
    assert beside is not None
    assert beside.seconds(10, 80.0) - Work(roles=beside.roles, forward=500).seconds(10, 80.0) == pytest.approx(
        4 / 6 * (whole.seconds(10, 80.0) - Work(roles=whole.roles, forward=500).seconds(10, 80.0))
    )


@pytest.mark.parametrize("algorithm", [{"reward": {}}, {"orpo": {}}, {"simpo": {}}, {"dpo": {"referenceFree": True}}])
def test_without_a_reference_held_out_rows_alone_are_scored_beside_training(
    tmp_path: Path, algorithm: dict[str, Any]
) -> None:
    work = work_of(spec(tmp_path, algorithm, batchSize=8))
    assert work is not None
    assert work.trained == 40 * 50
    assert work.forward == 10 * 50


def test_work_of_grpo_counts_what_is_sampled(tmp_path: Path) -> None:
    rewards = [{"function": {"regex": {"pattern": "x"}}}]
    options = {"promptsPerRollout": 4, "groupSize": 2, "maxNewTokens": 10, "rewards": rewards, "epochsPerRollout": 2}
    work = work_of(spec(tmp_path, {"grpo": options}, batchSize=8, maxSteps=3, maxLength=128))
    assert work is not None
    assert work.sampled == 3 * 4 * 2 * 10
    assert work.samplers == 2  # of stage `train` and of `evaluate`
    assert work.trained == 2 * (3 * 4 * 2 * 10 + 3 * 4 * 50)


def test_seconds_are_flops_over_the_rate_and_a_share_for_each_role() -> None:
    """2 FLOPs a parameter forward, 6 in training (Kaplan et al. 2020), at 0.6 of the rate of a product."""
    assert Work(forward=100, trained=100).seconds(parameters=10, rate=80.0) == pytest.approx(10 * 800 / 48)
    assert Work(sampled=30).seconds(parameters=10, rate=80.0) == pytest.approx(10 * 60 / 24)
    assert Work(roles=1, samplers=1).seconds(10, 80.0) > 2 * Work(roles=1).seconds(10, 80.0)
    assert Work(roles=2).seconds(10, 80.0) == 2 * Work(roles=1).seconds(10, 80.0) > 0


def test_rows_of_a_pattern_are_those_of_its_files(tmp_path: Path) -> None:
    whole = spec(tmp_path, {"dpo": {}})
    for part in ("0", "1"):
        (tmp_path / f"part-{part}.jsonl").write_text((json.dumps(PAIR) + "\n") * 20)
    data = {"data": {"source": f"file://{tmp_path}/part-?.jsonl", "evaluation": {"fraction": 0.25}}}
    parts = AlignmentJobSpec.model_validate(whole.model_dump(by_alias=True) | data)
    assert work_of(parts) == work_of(whole)


def test_data_that_is_elsewhere_is_not_guessed_at(tmp_path: Path) -> None:
    elsewhere = AlignmentJobSpec.model_validate(
        spec(tmp_path, {"dpo": {}}).model_dump(by_alias=True) | {"data": {"source": "hf://a/b"}}
    )
    assert work_of(elsewhere) is None
    assert duration_range(elsewhere, 10, bf16=False) is None


def test_bf16_in_hardware_is_faster_and_the_range_holds_its_middle() -> None:
    """At the same rate of fp32; loading takes as long in either."""
    work = Work(forward=100, trained=100, roles=1)
    fp32, bf16 = (work.seconds_range(parameters=10, rate=80.0, bf16=fast) for fast in (False, True))
    assert fp32[0] < work.seconds(10, rate=80.0) < fp32[1]
    assert bf16[0] < work.seconds(10, rate=120.0) < bf16[1]
    assert bf16[0] / fp32[0] == pytest.approx((8000 / 72 + 12) / (8000 / 48 + 12))


def test_what_lies_here_is_guessed_at_by_a_rate_that_is_measured(tmp_path: Path) -> None:
    found = duration_range(spec(tmp_path, {"dpo": {}}, rows=400, batchSize=8), 10**10, bf16=False)
    assert found is not None
    assert 0 < found[0] < found[1]
    assert measured_rate(0.01) > 0
