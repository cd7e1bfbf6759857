"""What a weight and a margin do in a step: against scripts in double precision, and against rows given twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradients
import pytest
import torch
from ranks import run_ranks
from tiny_runs import offline, pairs

from alignment_trainer.algorithms import OFFLINE, ScoredRows
from alignment_trainer.data.examples import Example
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.loop.offline import TrainingRows

TOLERANCE = 1e-6
"""Relative, in L2 over the whole gradient, as in test_gradients."""
SCORES = [(-12.5, -30.25), (-3.5, -2.0), (-9.0, -9.5), (-1.25, -8.0)]
REFERENCE = [(-14.0, -28.5), (-3.0, -2.5), (-8.0, -9.0), (-2.0, -7.0)]
LENGTHS = [(7, 11), (3, 2), (4, 6), (1, 9)]
LABELS = [1, 0, 1, 0]
WEIGHTS = [0.25, 0.0, 3.0, 1.5]
Loss = Callable[[Sequence[float], Sequence[float], Sequence[int], int], tuple[float, tuple[float, float]]]
"""Of scores, reference, lengths and label: the loss, and its slopes by the two scores."""


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def dpo(scores: Sequence[float], reference: Sequence[float], lengths: Sequence[int], label: int) -> Any:
    h = 0.1 * (scores[0] - reference[0] - scores[1] + reference[1])
    return math.log1p(math.exp(-h)), (-0.1 * sigmoid(-h), 0.1 * sigmoid(-h))


def ipo(scores: Sequence[float], reference: Sequence[float], lengths: Sequence[int], label: int) -> Any:
    off = scores[0] - reference[0] - scores[1] + reference[1] - 5
    return off**2, (2 * off, -2 * off)


def simpo(scores: Sequence[float], reference: Sequence[float], lengths: Sequence[int], label: int) -> Any:
    h = 2 * (scores[0] / lengths[0] - scores[1] / lengths[1]) - 1
    return math.log1p(math.exp(-h)), (-2 * sigmoid(-h) / lengths[0], 2 * sigmoid(-h) / lengths[1])


def orpo(scores: Sequence[float], reference: Sequence[float], lengths: Sequence[int], label: int) -> Any:
    chosen, rejected = (score / length for score, length in zip(scores, lengths, strict=True))
    odds = [p - math.log1p(-math.exp(p)) for p in (chosen, rejected)]
    off = sigmoid(odds[1] - odds[0])
    slopes = [1 / (1 - math.exp(p)) for p in (chosen, rejected)]
    loss = -chosen + 0.1 * math.log1p(math.exp(odds[1] - odds[0]))
    return loss, ((-1 - 0.1 * off * slopes[0]) / lengths[0], 0.1 * off * slopes[1] / lengths[1])


def reward(scores: Sequence[float], reference: Sequence[float], lengths: Sequence[int], label: int) -> Any:
    h = scores[0] - scores[1]
    return math.log1p(math.exp(-h)), (-sigmoid(-h), sigmoid(-h))


def sft(scores: Sequence[float], reference: Sequence[float], lengths: Sequence[int], label: int) -> Any:
    return -scores[0] / lengths[0], (-1 / lengths[0], 0.0)


def kto(scores: Sequence[float], reference: Sequence[float], lengths: Sequence[int], label: int) -> Any:
    sign = 1 if label else -1
    lost = sigmoid(-0.1 * sign * (scores[0] - reference[0] - 0.75))
    return lost, (-0.1 * sign * lost * (1 - lost), 0.0)


SCRIPTS: dict[str, Loss] = {
    "sft": sft,
    "kto": kto,
    "dpo": dpo,
    "ipo": ipo,
    "orpo": orpo,
    "simpo": simpo,
    "reward": reward,
}


@pytest.mark.parametrize("name", OFFLINE)
def test_loss_and_gradient_of_a_step_are_the_weighed_means_of_its_rows(name: str) -> None:
    """sum(w c l) / sum(w c), c the trained tokens for sft, else 1."""
    algorithm = offline(name)
    columns = 1 if name in ("sft", "kto") else 2
    scores = torch.tensor(SCORES).double()[:, :columns].requires_grad_()
    rows = ScoredRows(
        scores,
        torch.tensor(REFERENCE).double()[:, :columns],
        torch.tensor(LENGTHS)[:, :columns],
        torch.tensor(LABELS),
        torch.tensor(0.75).double(),
        torch.tensor(WEIGHTS),
    )
    loss = algorithm.loss(rows).loss @ algorithm.weights(rows)
    (slopes,) = torch.autograd.grad(loss, [scores])
    counted = [weight * (lengths[0] if name == "sft" else 1) for weight, lengths in zip(WEIGHTS, LENGTHS, strict=True)]
    by_hand = [SCRIPTS[name](*row) for row in zip(SCORES, REFERENCE, LENGTHS, LABELS, strict=True)]
    shares = [count / sum(counted) for count in counted]
    assert float(loss.detach()) == pytest.approx(
        sum(share * one for share, (one, _) in zip(shares, by_hand, strict=True)), rel=1e-12
    )
    for found, share, (_, wanted) in zip(slopes.tolist(), shares, by_hand, strict=True):
        assert found == pytest.approx([share * slope for slope in wanted[:columns]], rel=1e-12, abs=1e-15)
    assert slopes[1].tolist() == [0.0] * columns, "a row of weight 0 teaches nothing"


@pytest.mark.parametrize("name", OFFLINE)
def test_rows_without_weights_are_means_as_ever(name: str) -> None:
    lengths = torch.tensor(LENGTHS)[:, :1]
    rows = ScoredRows(torch.zeros(4, 1), torch.zeros(4, 1), lengths)
    wanted = [length / 15 for length in (7, 3, 4, 1)] if name == "sft" else [0.25] * 4
    assert offline(name).weights(rows).tolist() == pytest.approx(wanted, rel=1e-15)


def test_a_step_whose_rows_all_weigh_nothing_has_no_loss_and_no_gradient() -> None:
    rows = ScoredRows(torch.tensor(SCORES), torch.zeros(4, 2), torch.tensor(LENGTHS), own_weights=torch.zeros(4))
    assert offline("dpo").weights(rows).tolist() == [0.0] * 4


def test_the_reference_point_of_kto_weighs_its_rows() -> None:
    """2, 1 and 6 nats, of weights 1, 3 and 0: 5 / 4."""
    scores, weights = torch.tensor([[2.0], [1.0], [6.0]]), torch.tensor([1.0, 3.0, 0.0])
    rows = ScoredRows(scores, torch.zeros(3, 1), torch.ones(3, 1), own_weights=weights)
    assert float(offline("kto").before(rows)) == 1.25


@pytest.mark.parametrize(("margin", "asked"), [(0.0, 0.0), (0.25, 0.25), (30.0, 30.0), (math.nan, 0.5)])
def test_a_row_s_margin_moves_the_loss_of_the_reward_model(margin: float, asked: float) -> None:
    """ln(1 + e^(m - d)) + c s^2 and its slopes (Touvron 2023, eq. 2); a row without one has the option's."""
    algorithm = offline("reward", margin=0.5, centerCoef=0.01)
    for chosen, rejected in ((1.5, 0.25), (-2.0, 3.0), (0.0, 0.0), (40.0, -40.0)):
        scores = torch.tensor([[chosen, rejected]], dtype=torch.float64, requires_grad=True)
        rows = ScoredRows(scores, torch.zeros(1, 2), torch.ones(1, 2), margins=torch.tensor([margin]))
        loss = algorithm.loss(rows).loss
        h, both = chosen - rejected - asked, chosen + rejected
        assert loss.tolist() == pytest.approx([math.log1p(math.exp(-h)) + 0.01 * both**2], rel=1e-12)
        (slopes,) = torch.autograd.grad(loss.sum(), [scores])
        wanted = [-sigmoid(-h) + 0.02 * both, sigmoid(-h) + 0.02 * both]
        assert slopes[0].tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-30)


def examples(name: str) -> list[Example]:
    """Five rows, those of kto with both labels, those of the reward model with a margin."""
    found = [replace(row, label=row.row % 2, margin=0.5 * row.row if name == "reward" else None) for row in pairs(5)]
    return [replace(row, group=row.group.of(slice(1 if name == "sft" else 2))) for row in found]


def step(folder: Path, name: str, rows: Sequence[Example], micro_tokens: int) -> gradients.Step:
    """Over all rows at once."""
    reference = gradients.reference(5)[[row.row - 1 for row in rows]][:, : len(rows[0].group.completions)]
    sampler = Sampler(len(rows), len(rows), seed=3)
    return gradients.of_rows(folder, name, TrainingRows(rows, sampler, reference), micro_tokens)


@pytest.mark.parametrize("name", OFFLINE)
def test_a_row_of_weight_two_is_the_row_given_twice(tmp_path: Path, name: str) -> None:
    once = examples(name)
    heavy = [replace(row, weight=2.0 if row.row == 3 else 1.0) for row in once]
    twice = [*once, once[2]]
    wanted = step(tmp_path / "twice", name, twice, gradients.ALL)
    plain = step(tmp_path / "once", name, once, gradients.ALL)
    assert abs(plain.loss - wanted.loss) > 1e-4 * abs(wanted.loss)
    assert gradients.difference(plain.gradient, wanted.gradient) > 1e-3, "the measure sees what a weight does"
    for tokens in (1, 150, gradients.ALL):
        found = step(tmp_path / f"{tokens}", name, heavy, tokens)
        assert found.loss == pytest.approx(wanted.loss, rel=1e-6)
        assert gradients.difference(found.gradient, wanted.gradient) < TOLERANCE


def heavy_loss(folder: str, name: str) -> float:
    """As the first rank reports it."""
    rows = [replace(row, weight=2.0 if row.row == 3 else 1.0) for row in examples(name)]
    return step(Path(folder), name, rows, 150).loss


@pytest.mark.parametrize("name", ["kto", "sft", "dpo"])
def test_a_weight_is_the_same_over_two_ranks(tmp_path: Path, name: str) -> None:
    loss = heavy_loss(str(tmp_path / "one"), name)
    spread = run_ranks(2, "test_weighted_steps:heavy_loss", folder=str(tmp_path / "two"), name=name)[0]
    assert spread == pytest.approx(loss, rel=1e-5)
