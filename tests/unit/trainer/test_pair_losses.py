"""Losses of pairs: by hand, and against scripts of one pair at a time in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_runs import offline

from alignment_trainer.algorithms import ScoredRows
from alignment_trainer.algorithms.dpo import dpo_loss
from alignment_trainer.algorithms.ipo import ipo_loss
from alignment_trainer.algorithms.orpo import log_odds as log_odds_of
from alignment_trainer.algorithms.orpo import orpo_loss
from alignment_trainer.algorithms.pairs import share_positive
from alignment_trainer.algorithms.reward_model import reward_model_loss
from alignment_trainer.algorithms.simpo import simpo_loss

MARGINS = torch.tensor([1.5, 0.0], requires_grad=True)
FP32_EPS = 2.0**-23
Row = tuple[float, float, float, float, int, int]
"""Scores of chosen and rejected, those of the reference, tokens of both."""
Figures = tuple[float, float, float]
"""A loss, its derivatives by the scores of chosen and rejected."""
ROWS: list[Row] = [
    (-12.5, -30.25, -14.0, -28.5, 7, 11),
    (-3.5, -2.0, -3.0, -2.5, 3, 2),
    (-8.0, -8.0, -8.0, -8.0, 4, 4),
    (-1e4, -1.0, -2.0, -2.0, 1, 5),
    (-1.0, -1e4, -2.0, -2.0, 5, 1),
    (-1e4, -1e4, -1e4, -1e4, 100, 100),
    (1e4, -1e4, 0.0, 0.0, 2, 2),
    (-1e4, 1e4, 0.0, 0.0, 2, 2),
    (-1e-4, -1e-3, -0.5, -0.5, 8, 8),
]
"""Far apart, equal, likelier than any log-prob can be, and nearly certain."""


def test_dpo_by_hand():
    """h = 0.1 x 1.5 = 0.15 and 0; ln(1 + e^-0.15) = 0.620957, ln 2 = 0.693147."""
    assert dpo_loss(MARGINS, beta=0.1).tolist() == pytest.approx([0.620957, 0.693147], abs=1e-6)


def test_label_smoothing_mixes_in_the_flipped_loss():
    """-log s(-0.15) is 0.15 more than -log s(0.15): 0.620957 + 0.1 x 0.15."""
    assert dpo_loss(MARGINS, beta=0.1, label_smoothing=0.1)[0].item() == pytest.approx(0.635957, abs=1e-6)


def test_robust_dpo_by_hand():
    """(0.9 x 0.620957 - 0.1 x 0.770957) / 0.8."""
    assert dpo_loss(MARGINS, 0.1, 0.1, robust=True)[0].item() == pytest.approx(0.602207, abs=1e-6)


def test_the_mean_of_robust_dpo_over_flipped_labels_is_the_loss_of_the_true_ones():
    """Chowdhury et al. 2024, section 3, of labels that are flipped with probability 0.2."""
    true, flipped = (dpo_loss(margin, 0.1, 0.2, robust=True) for margin in (MARGINS, -MARGINS))
    assert (0.8 * true + 0.2 * flipped).tolist() == pytest.approx(dpo_loss(MARGINS, 0.1).tolist(), abs=1e-6)


def test_dpo_gradient_is_the_papers():
    """Rafailov 2023, section 4: beta s(-h) up for the margin; s(-0.15) = 0.462570."""
    (gradient,) = torch.autograd.grad(dpo_loss(MARGINS, beta=0.1).sum(), [MARGINS])
    assert gradient.tolist() == pytest.approx([-0.0462570, -0.05], abs=1e-6)


def test_rpo_adds_the_chosen_s_nll_per_token():
    """8 nats over 4 tokens, weighed by 0.5; the loss of equal pairs is ln 2."""
    pairs = ScoredRows(torch.tensor([[-8.0, -6.0]]), torch.tensor([[-8.0, -6.0]]), torch.tensor([[4, 2]]))
    assert offline("dpo", rpoAlpha=0.5).loss(pairs).loss.item() == pytest.approx(math.log(2) + 1.0, abs=1e-6)


def test_ipo_by_hand():
    """1 / (2 x 0.1) = 5 nats are asked for: (1.5 - 5)^2 and (0 - 5)^2; slopes 2 (1.5 - 5) and 2 (0 - 5)."""
    loss = ipo_loss(MARGINS, beta=0.1)
    assert loss.tolist() == pytest.approx([12.25, 25.0], abs=1e-5)
    assert torch.autograd.grad(loss.sum(), [MARGINS])[0].tolist() == pytest.approx([-7.0, -10.0], abs=1e-5)


def test_ipo_per_token_by_hand():
    """Log-ratios 1 over 2 tokens and -0.5 over 1: a margin of 1, and (1 - 5)^2."""
    pairs = ScoredRows(torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -2.5]]), torch.tensor([[2, 1]]))
    assert offline("ipo", lengthNormalized=True).loss(pairs).loss.item() == pytest.approx(16.0, abs=1e-5)


def test_simpo_by_hand():
    """2 x 1.5 - 1 = 2: ln(1 + e^-2) = 0.126928; for a margin of 0 ln(1 + e) = 1.313262."""
    assert simpo_loss(MARGINS, beta=2.0, gamma=1.0).tolist() == pytest.approx([0.126928, 1.313262], abs=1e-6)


def test_simpo_takes_the_mean_over_each_completion_s_own_tokens():
    """-2 over 4 and -3 over 3: 2 (-0.5 + 1) - 0.5 = 0.5; ln(1 + e^-0.5) = 0.474077."""
    pairs = ScoredRows(torch.tensor([[-2.0, -3.0]]), torch.zeros(1, 2), torch.tensor([[4, 3]]))
    found = offline("simpo", beta=2.0, gamma=0.5).loss(pairs)
    assert found.loss.item() == pytest.approx(0.474077, abs=1e-6)
    assert found.metrics["reward_margin"].item() == pytest.approx(1.0, abs=1e-6)


def test_orpo_by_hand():
    """Odds of 1/2 are 1, of 1/4 they are 1/3: ln(1 + 1/3) = 0.287682, and NLL ln 2; lambda 1/2.

    Slopes: -1 - 1/2 x 1/4 / (1 - 1/2) for the chosen, 1/2 x 1/4 / (1 - 1/4) for the rejected.
    """
    chosen, rejected = (torch.tensor([math.log(p)], requires_grad=True) for p in (0.5, 0.25))
    loss = orpo_loss(chosen, rejected, weight=0.5)
    assert loss.item() == pytest.approx(0.693147 + 0.143841, abs=1e-6)
    slopes = torch.autograd.grad(loss.sum(), [chosen, rejected])
    assert [slope.item() for slope in slopes] == pytest.approx([-1.25, 0.1666667], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_certain_completion_has_the_same_finite_odds_in_every_precision(dtype: torch.dtype) -> None:
    """Of a log-prob of -2^-23: 23 ln 2 = 15.942385."""
    certain = torch.zeros(1, dtype=dtype, requires_grad=True)
    odds = log_odds_of(certain)
    assert odds.item() == pytest.approx(15.942385, abs=1e-5)
    assert torch.autograd.grad(odds.sum(), [certain])[0].item() == 0.0


def test_reward_model_loss_by_hand():
    """ln(1 + e^-1) = 0.313262; with a margin of 1, ln 2; centred, 0.01 x (2 + 1)^2 more."""
    chosen, rejected = torch.tensor([2.0]), torch.tensor([1.0])
    assert reward_model_loss(chosen, rejected).item() == pytest.approx(0.313262, abs=1e-6)
    assert reward_model_loss(chosen, rejected, margin=1.0).item() == pytest.approx(0.693147, abs=1e-6)
    assert reward_model_loss(chosen, rejected, center_coef=0.01).item() == pytest.approx(0.403262, abs=1e-6)


def test_a_policy_that_equals_its_reference_starts_at_ln_2_whatever_beta():
    scores = torch.tensor([[-2.0, -2.5], [-5.0, -4.0]])
    for beta in (0.01, 0.1, 10.0):
        loss = offline("dpo", beta=beta).loss(ScoredRows(scores, scores, torch.ones(2, 2))).loss
        assert loss.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)


def test_metrics_are_the_rewards_of_each_pair():
    pairs = ScoredRows(
        torch.tensor([[-1.0, -3.0], [-5.0, -4.0]]),
        torch.tensor([[-2.0, -2.5], [-5.0, -4.0]]),
        torch.tensor([[2, 3], [10, 4]]),
    )
    metrics = offline("dpo", beta=0.1).loss(pairs).metrics
    assert metrics["chosen_reward"].tolist() == pytest.approx([0.1, 0.0])
    assert metrics["rejected_reward"].tolist() == pytest.approx([-0.05, 0.0])
    assert metrics["reward_margin"].tolist() == pytest.approx([0.15, 0.0])
    assert metrics["accuracy"].tolist() == [1.0, 0.5]
    assert metrics["likelier_chosen"].tolist() == [1.0, 0.0]
    assert metrics["chosen_nll"].tolist() == pytest.approx([0.5, 0.5])


def test_the_margin_of_orpo_is_the_log_of_the_odds_ratio():
    pairs = ScoredRows(torch.tensor([[2 * math.log(0.5), math.log(0.25)]]), torch.zeros(1, 2), torch.tensor([[2, 1]]))
    assert offline("orpo").loss(pairs).metrics["reward_margin"].item() == pytest.approx(math.log(3), abs=1e-6)


def test_ties_count_a_half():
    assert share_positive(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.5, 1.0]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def cost(x: float) -> float:
    """-log s(x)."""
    return max(-x, 0.0) + math.log1p(math.exp(-abs(x)))


def dpo(row: Row, beta=0.1, smoothing=0.0, robust=False, alpha=0.0, per_token=False, free=False) -> Figures:
    chosen, rejected, ref_chosen, ref_rejected, *lengths = row
    counts = lengths if per_token else (1, 1)
    ratio = (chosen - ref_chosen * (not free)) / counts[0] - (rejected - ref_rejected * (not free)) / counts[1]
    h = beta * ratio
    kept, flipped = 1 - smoothing, -smoothing if robust else smoothing
    scale = 1 - 2 * smoothing if robust else 1.0
    loss = (kept * cost(h) + flipped * cost(-h)) / scale
    slope = beta * (-kept * sigmoid(-h) + flipped * sigmoid(h)) / scale
    return loss - alpha * chosen / lengths[0], slope / counts[0] - alpha / lengths[0], -slope / counts[1]


def ipo(row: Row, beta=0.1, per_token=False) -> Figures:
    chosen, rejected, ref_chosen, ref_rejected, *lengths = row
    counts = lengths if per_token else (1, 1)
    short = (chosen - ref_chosen) / counts[0] - (rejected - ref_rejected) / counts[1] - 0.5 / beta
    return short**2, 2 * short / counts[0], -2 * short / counts[1]


def simpo(row: Row, beta=2.0, gamma=1.0) -> Figures:
    chosen, rejected, _, _, *lengths = row
    h = beta * (chosen / lengths[0] - rejected / lengths[1]) - gamma
    slope = -beta * sigmoid(-h)
    return cost(h), slope / lengths[0], -slope / lengths[1]


def log_odds(logprob: float) -> float:
    """-log(e^-p - 1), which is p itself where e^-p has no number."""
    return -math.log(math.expm1(-logprob)) if logprob > -700 else logprob


def orpo(row: Row, weight=0.1) -> Figures:
    """A mean log-prob that is 0 or more counts as the last one below in fp32, and has no slope."""
    chosen, rejected = row[0] / row[4], row[1] / row[5]
    bounded = [min(mean, -FP32_EPS) for mean in (chosen, rejected)]
    h = log_odds(bounded[0]) - log_odds(bounded[1])
    pulls = [weight * sigmoid(-h) / -math.expm1(mean) if mean < -FP32_EPS else 0.0 for mean in bounded]
    return -chosen + weight * cost(h), (-1 - pulls[0]) / row[4], pulls[1] / row[5]


def reward(row: Row, margin=0.0, center=0.0) -> Figures:
    chosen, rejected = row[:2]
    slope, pull = -sigmoid(-(chosen - rejected - margin)), 2 * center * (chosen + rejected)
    return cost(chosen - rejected - margin) + center * (chosen + rejected) ** 2, slope + pull, -slope + pull


ORACLES: list[tuple[str, dict[str, Any], Callable[[Row], Figures]]] = [
    ("dpo", {}, dpo),
    ("dpo", {"beta": 2.0, "labelSmoothing": 0.2}, lambda row: dpo(row, 2.0, 0.2)),
    ("dpo", {"labelSmoothing": 0.3, "robust": True}, lambda row: dpo(row, smoothing=0.3, robust=True)),
    ("dpo", {"rpoAlpha": 0.5}, lambda row: dpo(row, alpha=0.5)),
    ("dpo", {"beta": 5.0, "lengthNormalized": True}, lambda row: dpo(row, 5.0, per_token=True)),
    ("dpo", {"referenceFree": True, "rpoAlpha": 1.0}, lambda row: dpo(row, alpha=1.0, free=True)),
    (
        "dpo",
        {"labelSmoothing": 0.1, "robust": True, "rpoAlpha": 2.0, "lengthNormalized": True, "referenceFree": True},
        lambda row: dpo(row, 0.1, 0.1, True, 2.0, True, True),
    ),
    ("ipo", {}, ipo),
    ("ipo", {"beta": 0.5, "lengthNormalized": True}, lambda row: ipo(row, 0.5, True)),
    ("simpo", {}, simpo),
    ("simpo", {"beta": 10.0, "gamma": 0.0}, lambda row: simpo(row, 10.0, 0.0)),
    ("orpo", {}, orpo),
    ("orpo", {"oddsWeight": 3.0}, lambda row: orpo(row, 3.0)),
    ("reward", {}, reward),
    ("reward", {"margin": 0.5, "centerCoef": 0.01}, lambda row: reward(row, 0.5, 0.01)),
]


@pytest.mark.parametrize("rows", [ROWS, *([row] for row in ROWS)], ids=["all", *map(str, ROWS)])
@pytest.mark.parametrize(("name", "options", "oracle"), ORACLES, ids=lambda value: str(value) if value else "")
def test_loss_and_gradient_are_those_of_a_script_of_one_pair_at_a_time(
    name: str, options: dict[str, Any], oracle: Callable[[Row], Figures], rows: list[Row]
) -> None:
    algorithm, table = offline(name, **options), torch.tensor(rows)
    scores = table[:, :2].clone().requires_grad_()
    reference = table[:, 2:4] if algorithm.needs_reference else torch.zeros(len(rows), 2)
    loss = algorithm.loss(ScoredRows(scores, reference, table[:, 4:].long())).loss
    loss.sum().backward()
    expected = torch.tensor([oracle(row) for row in rows], dtype=torch.float64)
    assert scores.grad is not None
    torch.testing.assert_close(loss.detach().double(), expected[:, 0], rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(scores.grad.double(), expected[:, 1:], rtol=2e-5, atol=1e-7)
