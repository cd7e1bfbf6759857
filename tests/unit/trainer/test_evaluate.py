"""Held-out figures by hand."""

import numpy as np
import pytest
import torch
from tiny_runs import offline

from alignment_api.contract.status import EvaluationReport
from alignment_trainer.algorithms import ScoredRows
from alignment_trainer.data.statistics import wilson
from alignment_trainer.loop.offline_evaluation import not_above_chance

REFERENCE = np.array([[-10, -12], [-8, -6], [-5, -5], [-7, -9]], dtype=np.float32)
POLICY = np.array([[-9, -13], [-7, -6], [-6, -4], [-7, -9]], dtype=np.float32)
# log-ratios: (1, -1), (1, 0), (-1, 1), (0, 0); margins at beta 0.5: 1, 0.5, -1, 0


def rows(scores: np.ndarray, reference: np.ndarray, tokens: int = 1) -> ScoredRows:
    """Rows whose completions have so many tokens each, as HeldOut makes them."""
    own, frozen = (torch.from_numpy(values).double() for values in (scores, reference))
    return ScoredRows(own, frozen, torch.full(scores.shape, tokens))


def test_the_figures_of_a_policy() -> None:
    figures = offline("dpo", beta=0.5).evaluated(rows(POLICY, REFERENCE), range(4))
    assert figures["accuracy"].value == (1 + 1 + 0 + 0.5) / 4
    assert figures["margin"].value == pytest.approx(0.125)
    # sample standard deviation of 1, 0.5, -1, 0: sqrt(2.1875 / 3)
    assert figures["margin"].high - 0.125 == pytest.approx(1.96 * (2.1875 / 3) ** 0.5 / 2, rel=1e-4)
    assert figures["likelierChosen"].value == 0.5
    assert (figures["accuracy"].low, figures["accuracy"].high) == pytest.approx(wilson(0.625, 4))


def test_the_reference_itself_is_at_chance() -> None:
    figures = offline("dpo").evaluated(rows(REFERENCE, REFERENCE), range(4))
    assert (figures["accuracy"].value, figures["margin"].value, figures["margin"].high) == (0.5, 0.0, 0.0)
    assert figures["likelierChosen"].value == (1 + 0 + 0.5 + 1) / 4


def test_pairs_of_one_prompt_widen_the_interval() -> None:
    own = offline("dpo", beta=0.5).evaluated(rows(POLICY, REFERENCE), range(4))["margin"]
    shared = offline("dpo", beta=0.5).evaluated(rows(POLICY, REFERENCE), ["a", "a", "b", "b"])["margin"]
    # sums of residuals by prompt: 1.25 and -1.25; sqrt(2 * 3.125) / 4
    assert (shared.high - shared.low) / 2 == pytest.approx(1.96 * 6.25**0.5 / 4, rel=1e-4)
    assert shared.high - shared.low > own.high - own.low


def test_the_figures_of_a_reward_model_need_no_reference() -> None:
    scores = np.array([[2, 1], [0.5, 0.5], [-1, 3], [4, 0]], dtype=np.float32)
    figures = offline("reward").evaluated(rows(scores, np.zeros_like(scores)), range(4))
    assert list(figures) == ["accuracy", "margin"]
    assert figures["accuracy"].value == (1 + 0.5 + 0 + 1) / 4
    assert figures["margin"].value == (1 + 0 - 4 + 4) / 4


@pytest.mark.parametrize(("right", "refused"), [(113, True), (115, False)])
def test_a_reward_model_must_beat_chance_by_its_lower_bound(right: int, refused: bool) -> None:
    """Of 200 pairs, 113 right have a lower bound of 0.4957, 115 of 0.5058 (Wilson)."""
    scores = np.array([[1, 0]] * right + [[0, 1]] * (200 - right), dtype=np.float32)
    figures = offline("reward").evaluated(rows(scores, np.zeros_like(scores)), range(200))
    failure = not_above_chance(EvaluationReport(before=figures, after=figures), "spec.algorithm.ppo.rewards[0].train")
    assert (failure is not None) == refused
    if failure is not None:
        assert (failure.reason, failure.retryable) == ("RewardModelNotAboveChance", False)
        assert failure.message.startswith("spec.algorithm.ppo.rewards[0].train: the reward model prefers")
        assert "56.5% of 200 held-out pairs (95% interval 49.6% to 63.2%)" in failure.message
