"""Advantages against numbers worked out by hand, and against an independent script over random shapes and masks."""

import math
import random
import statistics

import pytest
import torch
from torch import Tensor
from trl.trainer.utils import nanstd

from alignment_api.contract.algorithms import Ppo as PpoOptions
from alignment_trainer.algorithms.advantages import (
    KlEstimator,
    RunningMoments,
    adapt_kl_coef,
    explained_variance,
    gae,
    group_advantages,
    importance_weights,
    kl_estimate,
    penalize_missing_end,
    penalized_rewards,
    whiten,
)
from alignment_trainer.algorithms.ppo import Ppo

# Four tokens, one token, none at all.
MASK = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])


def ragged(seed: int) -> tuple[random.Random, Tensor, list[int]]:
    """A mask of completions of 0 to 6 tokens, one of them empty and one of a single token."""
    draw = random.Random(seed)
    lengths = [0, 1, *(draw.randint(1, 6) for _ in range(5))]
    return draw, torch.tensor([[float(t < length) for t in range(7)] for length in lengths]), lengths


def gaussian(draw: random.Random, mask: Tensor) -> Tensor:
    return torch.tensor([[draw.gauss(0, 1) for _ in row] for row in mask.tolist()])


def with_rubbish(values: Tensor, mask: Tensor) -> Tensor:
    """NaN and infinity where no token is: half a batch of padding often holds such."""
    return torch.where(mask.bool(), values, torch.tensor([math.nan, math.inf] * 8)[: mask.shape[1]])


def test_kl_estimates_by_hand() -> None:
    """d = ln 2: k2 is ln(2)^2 / 2, k3 1/2 + ln 2 - 1. d = -ln 2: k3 is 2 - ln 2 - 1."""
    logprobs, reference = torch.tensor([-1.0, -1.0 - math.log(2)]), torch.tensor([-1.0 - math.log(2), -1.0])
    assert kl_estimate(logprobs, reference, "k1").tolist() == pytest.approx([0.693147, -0.693147], abs=1e-6)
    assert kl_estimate(logprobs, reference, "k2").tolist() == pytest.approx([0.240227, 0.240227], abs=1e-6)
    assert kl_estimate(logprobs, reference, "k3").tolist() == pytest.approx([0.193147, 0.306853], abs=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_an_unbiased_estimate_has_the_true_divergence_as_its_mean(estimator: KlEstimator) -> None:
    torch.manual_seed(0)
    policy, reference = (torch.distributions.Categorical(logits=torch.randn(50)) for _ in range(2))
    each = kl_estimate(policy.logits, reference.logits, estimator)
    assert (policy.probs * each).sum().item() == pytest.approx(
        torch.distributions.kl_divergence(policy, reference).item(), rel=1e-5
    )


def test_k3_pulls_towards_the_reference_and_rests_there() -> None:
    """d k3 / d log pi = 1 - e^-d: 1/2 at d = ln 2, 0 at d = 0."""
    logprobs = torch.tensor([math.log(2), 0.0], requires_grad=True)
    kl_estimate(logprobs, torch.zeros(2), "k3").sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([0.5, 0.0])


def test_the_score_arrives_at_the_last_token_on_top_of_the_penalty() -> None:
    kl = torch.tensor([[0.1, 0.2, 0.0, -0.1], [0.5, math.nan, math.inf, 9.0], [math.nan, 9.0, 9.0, 9.0]])
    rewards = penalized_rewards(torch.tensor([2.0, -1.0, 7.0]), kl, MASK, kl_coef=0.5)
    assert rewards[0].tolist() == pytest.approx([-0.05, -0.1, 0.0, 2.05])
    assert rewards[1].tolist() == [-1.25, 0.0, 0.0, 0.0]
    assert rewards[2].tolist() == [0.0] * 4


def test_gae_by_hand() -> None:
    """gamma 1/2, lambda 1/2. First: delta = 1, 0, -1, 2; A_4 = 2, A_3 = -1 + 2/4, A_2 = 0 - 0.5/4, A_1 = 1 - 0.125/4.

    delta_1 = 1 + 2/2 - 1, delta_2 = 0 + 4/2 - 2, delta_3 = 2 + 2/2 - 4, delta_4 = 4 - 2. Second: A = 3 - 1.
    """
    rewards = torch.tensor([[1.0, 0, 2, 4], [3, 9, 9, 9], [9, 9, 9, 9]])
    values = torch.tensor([[1.0, 2, 4, 2], [1, 9, 9, 9], [9, 9, 9, 9]])
    advantages, returns = gae(with_rubbish(rewards, MASK), with_rubbish(values, MASK), MASK, gamma=0.5, lam=0.5)
    assert advantages.tolist() == [[0.96875, -0.125, -0.5, 2.0], [2.0, 0, 0, 0], [0.0] * 4]
    assert returns.tolist() == [[1.96875, 1.875, 3.5, 4.0], [3.0, 0, 0, 0], [0.0] * 4]


@pytest.mark.parametrize("seed", range(5))
def test_gae_is_the_discounted_sum_of_the_temporal_differences(seed: int) -> None:
    draw, mask, lengths = ragged(seed)
    rewards, values, gamma, lam = gaussian(draw, mask), gaussian(draw, mask), 0.97, 0.9
    advantages, returns = gae(with_rubbish(rewards, mask), with_rubbish(values, mask), mask, gamma, lam)
    for i, length in enumerate(lengths):
        v = [*values[i, :length].tolist(), 0.0]
        delta = [rewards[i, t].item() + gamma * v[t + 1] - v[t] for t in range(length)]
        expected = [sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, length)) for t in range(length)]
        assert advantages[i].tolist() == pytest.approx(expected + [0.0] * (7 - length), abs=1e-5)
        assert returns[i].tolist() == pytest.approx(
            [a + b for a, b in zip(expected, v, strict=False)] + [0.0] * (7 - length), abs=1e-5
        )


def test_without_discount_the_return_is_the_sum_of_the_rewards_to_come() -> None:
    draw, mask, lengths = ragged(7)
    rewards, values = gaussian(draw, mask), gaussian(draw, mask)
    _, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    for i, length in enumerate(lengths):
        to_come = [math.fsum(rewards[i, t:length].tolist()) for t in range(length)]
        assert returns[i, :length].tolist() == pytest.approx(to_come, abs=1e-5)


def test_tokens_of_others_within_a_completion_are_stepped_over() -> None:
    """The answer of a tool in the middle, say: as if the two outer tokens were neighbours."""
    with_gap = gae(torch.tensor([[1.0, 50, 2]]), torch.tensor([[0.5, 70, 1]]), torch.tensor([[1.0, 0, 1]]), 0.9, 0.8)
    without = gae(torch.tensor([[1.0, 2]]), torch.tensor([[0.5, 1]]), torch.ones(1, 2), 0.9, 0.8)
    for gapped, plain in zip(with_gap, without, strict=True):
        assert gapped[:, ::2].tolist() == plain.tolist()
        assert gapped[0, 1] == 0


def test_a_completion_that_was_cut_off_bootstraps_from_its_end_by_hand() -> None:
    """gamma 1/2, lambda 1/2, V after the last token 8. First: delta_4 = 4 + 8/2 - 2 = 6, A_3 = -1 + 6/4, and so on up.

    Second: it ended, so V after it is 0 and A = 3 - 1. An empty completion has nothing to bootstrap.
    """
    rewards = torch.tensor([[1.0, 0, 2, 4], [3, 9, 9, 9], [9, 9, 9, 9]])
    values = torch.tensor([[1.0, 2, 4, 2], [1, 9, 9, 9], [9, 9, 9, 9]])
    ends = torch.tensor([8.0, 0, 5])
    advantages, returns = gae(with_rubbish(rewards, MASK), with_rubbish(values, MASK), MASK, 0.5, 0.5, ends)
    assert advantages.tolist() == [[1.03125, 0.125, 0.5, 6.0], [2.0, 0, 0, 0], [0.0] * 4]
    assert returns.tolist() == [[2.03125, 2.125, 4.5, 8.0], [3.0, 0, 0, 0], [0.0] * 4]


def test_without_an_end_every_completion_ends_its_episode() -> None:
    draw, mask, lengths = ragged(3)
    rewards, values = gaussian(draw, mask), gaussian(draw, mask)
    plain = gae(rewards, values, mask, 0.9, 0.8)
    zeros = gae(rewards, values, mask, 0.9, 0.8, torch.zeros(len(lengths)))
    assert all(torch.equal(one, other) for one, other in zip(plain, zeros, strict=True))


def test_a_missing_end_costs_its_penalty_and_nothing_else_does() -> None:
    scores, finished = torch.tensor([2.0, 2.0, -1.0]), torch.tensor([True, False, False])
    assert penalize_missing_end(scores, finished, 1.5).tolist() == [2.0, 0.5, -2.5]
    assert penalize_missing_end(scores, finished, 0.0).tolist() == scores.tolist()


def test_whitening_by_hand() -> None:
    """1, 2, 3, 4 and 5: mean 3, variance 2."""
    values = with_rubbish(torch.tensor([[1.0, 2, 3, 4], [5, 0, 0, 0], [0, 0, 0, 0]]), MASK)
    s = math.sqrt(2)
    assert whiten(values, MASK)[0].tolist() == pytest.approx([-2 / s, -1 / s, 0, 1 / s], abs=1e-6)
    assert whiten(values, MASK)[1:].flatten().tolist() == pytest.approx([2 / s, *[0] * 7], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_whitening_is_that_of_the_tokens_alone(seed: int) -> None:
    draw, mask, _ = ragged(seed)
    values = gaussian(draw, mask) * 3 + 100
    inside = values[mask.bool()].tolist()
    expected = [(v - statistics.fmean(inside)) / statistics.pstdev(inside) for v in inside]
    white = whiten(with_rubbish(values, mask), mask)
    assert white[mask.bool()].tolist() == pytest.approx(expected, abs=1e-4)
    assert white[~mask.bool()].abs().sum() == 0


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_values_that_do_not_vary_are_whitened_to_nothing(tokens: int) -> None:
    mask = torch.tensor([[float(t < tokens) for t in range(5)]])
    assert whiten(torch.full((1, 5), 0.3), mask).tolist() == [[0.0] * 5]


def test_group_advantages_by_hand() -> None:
    """1, 1, 0, 0: mean 1/2, std of a sample sqrt(4 (1/4) / 3) = 0.577350; 0.5 / 0.577450 = 0.865876."""
    advantages = group_advantages(torch.tensor([[1.0, 1, 0, 0], [0.1, 0.1, 0.1, 0.1]]))
    assert advantages[0].tolist() == pytest.approx([0.865876, 0.865876, -0.865876, -0.865876], abs=1e-6)
    assert advantages[1].tolist() == [0.0] * 4


def test_completions_that_do_not_count_are_in_no_mean_and_no_deviation() -> None:
    """1 and 0 count beside a cut 50: mean 1/2, std sqrt(1/2) = 0.707107; 0.5 / 0.707207 = 0.707007."""
    counted = torch.tensor([[True, False, True], [False, True, False], [False, False, False]])
    advantages = group_advantages(torch.tensor([[1.0, 50, 0], [9, 2, 9], [1, 2, 3]]), counted.float())
    assert advantages[0].tolist() == pytest.approx([0.707007, 0, -0.707007], abs=1e-6)
    assert advantages[1:].tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("score", [0.1, 0.3, 1 / 3, 1e6 + 0.1, -7.7])
@pytest.mark.parametrize("size", [2, 3, 7, 8])
def test_equal_scores_have_exactly_no_advantage(score: float, size: int) -> None:
    """The mean of numbers that are equal is not always that number."""
    assert group_advantages(torch.full((2, size), score)).tolist() == [[0.0] * size] * 2


def test_group_advantages_are_those_of_trl() -> None:
    torch.manual_seed(0)
    scores = torch.randn(6, 5) * 2
    std = nanstd(scores, dim=1, keepdim=True)
    expected = (scores - scores.nanmean(dim=1, keepdim=True)) / (std + 1e-4)
    assert torch.allclose(group_advantages(scores), expected, atol=1e-6)


def test_a_group_of_one_has_nothing_to_be_compared_with() -> None:
    assert group_advantages(torch.tensor([[3.0], [-1.0]])).tolist() == [[0.0], [0.0]]


def test_the_kl_controller_by_hand() -> None:
    """Ziegler 2019: KL a tenth above its target, 100 of 10,000 completions: 1 + 0.1 / 100. Clipped at a fifth."""
    assert adapt_kl_coef(0.2, kl=0.11, target=0.1, completions=100, horizon=10_000) == pytest.approx(0.2 * 1.001)
    assert adapt_kl_coef(0.2, kl=5.0, target=0.1, completions=100, horizon=10_000) == pytest.approx(0.2 * 1.002)
    assert adapt_kl_coef(0.2, kl=-1.0, target=0.1, completions=100, horizon=10_000) == pytest.approx(0.2 * 0.998)
    assert adapt_kl_coef(0.0, kl=5.0, target=0.1, completions=100, horizon=10_000) == 0.0


@pytest.mark.parametrize(("target", "factor"), [(0.1, 1.001), (0.0, 1.0)])
def test_the_controller_follows_its_target_and_without_one_leaves_the_weight(target: float, factor: float) -> None:
    options = PpoOptions.model_validate({"rewards": [{"function": {"numericAnswer": {}}}], "targetKl": target})
    assert Ppo(options).next_kl_coef(0.2, kl=0.11, completions=100) == pytest.approx(0.2 * factor)


def test_importance_weights_are_cut_off_above_and_only_there() -> None:
    old = torch.tensor([math.log(0.5), math.log(0.1), 0.0, 200.0])
    rollout = torch.tensor([math.log(0.4), math.log(0.5), -3.0, 0.0])
    assert importance_weights(old, rollout, cap=2.0).tolist() == pytest.approx([1.25, 0.2, 2.0, 2.0])


def test_explained_variance_by_hand() -> None:
    """Returns 1, 2, 3, 4, 0 vary by 2. Off by a constant: 1. The same value for all: 0. The wrong way round: 1 - 4."""
    returns = with_rubbish(torch.tensor([[1.0, 2, 3, 4], [0, 0, 0, 0], [0, 0, 0, 0]]), MASK)
    assert explained_variance(returns - 5, returns, MASK).item() == pytest.approx(1.0)
    assert explained_variance(torch.full((3, 4), 7.0), returns, MASK).item() == pytest.approx(0.0)
    assert explained_variance(-returns, returns, MASK).item() == pytest.approx(-3.0)


@pytest.mark.parametrize("mask", [MASK * 0, MASK * torch.tensor([[0.0], [1.0], [1.0]])], ids=["empty", "one token"])
def test_explained_variance_is_nothing_where_returns_do_not_vary(mask: Tensor) -> None:
    assert explained_variance(torch.randn(3, 4), torch.randn(3, 4), mask).item() == 0.0


def test_running_moments_are_those_of_everything_seen() -> None:
    """2, 4 | 4, 4, 5, 5, 7, 9: mean 5, deviation 2 (of the population), in any cut."""
    numbers = torch.tensor([2.0, 4, 4, 4, 5, 5, 7, 9])
    for cut in (1, 2, 5, 8):
        moments = RunningMoments().after(numbers[:cut]).after(numbers[cut:])
        assert (moments.count, moments.mean) == (8, pytest.approx(5))
        assert moments.deviation == pytest.approx(2)


def test_running_moments_are_accurate_far_from_zero() -> None:
    draw = random.Random(1)
    numbers = [1e6 + draw.gauss(0, 1) for _ in range(300)]
    moments = RunningMoments()
    for start in range(0, 300, 7):
        moments = moments.after(torch.tensor(numbers[start : start + 7], dtype=torch.float64))
    assert moments.deviation == pytest.approx(statistics.pstdev(numbers), rel=1e-6)


@pytest.mark.parametrize("seen", [[], [3.0], [0.1, 0.1, 0.1]])
def test_scores_that_have_not_varied_are_divided_by_one(seen: list[float]) -> None:
    assert RunningMoments().after(torch.tensor(seen)).deviation == 1.0
