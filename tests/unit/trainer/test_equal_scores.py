"""What says nothing teaches nothing: equal scores, and advantages that differ by rounding alone."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from online_runs import OnlineSetting, online_run

from alignment_api.contract.rewards import Reward
from alignment_trainer.algorithms.advantages import explained_variance, gae, group_advantages, groups_differ, whiten
from alignment_trainer.loop.online import OnlineRun
from alignment_trainer.loop.train import train_online
from alignment_trainer.rewards import FunctionScorer
from alignment_trainer.rewards.total import RewardSum

FINITE = st.floats(-1e6, 1e6, width=32)
EPS = torch.finfo(torch.float32).eps


@given(score=FINITE, size=st.integers(1, 70), groups=st.integers(1, 4))
@settings(deadline=None)
def test_equal_scores_give_exactly_nothing_in_any_group(score: float, size: int, groups: int) -> None:
    assert not group_advantages(torch.full((groups, size), score)).any()


@given(score=FINITE, tokens=st.integers(1, 70), rows=st.integers(1, 4))
@settings(deadline=None)
def test_equal_advantages_are_whitened_to_exactly_nothing(score: float, tokens: int, rows: int) -> None:
    assert not whiten(torch.full((rows, tokens), score), torch.ones(rows, tokens)).any()


@given(weights=st.lists(st.floats(0.125, 1e6, width=32), min_size=1, max_size=8), size=st.integers(2, 40))
@settings(deadline=None)
def test_equal_parts_of_a_reward_have_equal_sums(weights: list[float], size: int) -> None:
    """They cancel here: what one order of addition leaves another does not, and `torch.sum` has two."""
    functions = [{"name": f"r{place}", "function": {"regex": {"pattern": "7"}}} for place in range(len(weights))]
    rewards = tuple(
        Reward.model_validate(function | {"weight": weight})
        for function, weight in zip(functions, weights, strict=True)
    )
    parts = {f"r{place}": torch.full((3 * size,), (-1.0) ** place * 0.7) for place in range(len(weights))}
    total = RewardSum(rewards, FunctionScorer((), {}), None, None, ends=()).total(parts)
    assert not group_advantages(total.view(3, size)).any()


@given(scores=st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=16))
@settings(deadline=None)
def test_scores_that_differ_are_told_apart_however_little_they_do(scores: list[float]) -> None:
    """Of fp32 numbers around 100 a difference of 0.001 is no rounding."""
    group = torch.tensor([scores])
    if max(scores) - min(scores) > 1e-3:
        assert groups_differ(group, torch.ones_like(group)).item()
        assert group_advantages(group).any()


def test_advantages_that_differ_by_the_rounding_of_what_they_are_made_of_are_no_signal() -> None:
    """A critic that knows every return of about 100 leaves advantages of some 1e-5: what fp32 cannot tell from 0."""
    torch.manual_seed(0)
    returns = torch.full((8, 20), 100.0)
    advantages = (torch.rand(8, 20) - 0.5) * 8 * 100 * EPS
    mask = torch.ones(8, 20)
    assert whiten(advantages, mask).abs().max() > 0.01
    assert not whiten(advantages, mask, returns).any()
    assert whiten(advantages * 1e4, mask, returns).abs().max() > 0.5


def test_a_right_critic_and_equal_rewards_leave_nothing_to_learn() -> None:
    """Rewards of 0.1 a token, discounted by nothing: V is what is to come, and no advantage is left."""
    rewards, mask = torch.full((4, 30), 0.1), torch.ones(4, 30)
    values = rewards.flip(1).cumsum(1).flip(1)
    advantages, returns = gae(rewards, values, mask, 1.0, 0.95)
    assert not whiten(advantages, mask, returns).any()


def test_returns_that_differ_by_rounding_are_not_explained() -> None:
    returns = torch.tensor([[0.7, 0.7 * (1 + EPS), 0.7, 0.7]])
    assert explained_variance(torch.zeros(1, 4), returns, torch.ones(1, 4)).item() == 0.0


def test_a_score_that_is_not_finite_is_not_taken_for_equal() -> None:
    """It is refused elsewhere; here it must not vanish."""
    assert group_advantages(torch.tensor([[0.5, math.nan, 0.5]])).isnan().any()
    assert whiten(torch.tensor([[0.5, math.nan, 0.5]]), torch.ones(1, 3)).isnan().any()


def score_all(run: OnlineRun, score: float) -> None:
    def rewards(rollout):
        scores = torch.full((len(rollout.mask),), score)
        return {"equal": scores}, scores

    run.services.clients.rewards = rewards


@pytest.mark.parametrize("kl_coef", [0.0, 0.04])
def test_a_step_of_equal_scores_is_none_and_is_counted(tmp_path: Path, kl_coef: float) -> None:
    """Without a KL term it updates nothing, whatever the optimizer remembers; with one there is that to learn from."""
    run, recorder = online_run(tmp_path, OnlineSetting("grpo", steps=2, samples=8, batch_size=32, epochs=1))
    run.position = type(run.position)(kl_coef=kl_coef)
    run.trainees.algorithm.next_kl_coef = lambda coef, kl, completions: coef
    versions: list[int] = []
    run.services = replace(run.services, publish=versions.append)
    batches = run.batches()
    run.update(next(run.minibatches(run.learn_from(run.score(run.rollout(next(batches)))))))
    run.deliver()
    score_all(run, 0.7)
    before = {name: tensor.clone() for name, tensor in run.trainees.engine.full_weights()}
    run.update(next(run.minibatches(run.learn_from(run.score(run.rollout(next(batches)))))))
    run.deliver()
    moved = [name for name, tensor in run.trainees.engine.full_weights() if not torch.equal(before[name], tensor)]
    assert bool(moved) == (kl_coef > 0)
    assert versions == ([1, 2] if kl_coef else [1])
    first, second = recorder.reports
    assert (first.metrics["silent_steps"], second.metrics["silent_steps"]) == (0.0, 1.0)
    assert first.metrics["equal_groups"] < 1.0
    assert second.metrics["equal_groups"] == 1.0


def test_the_share_of_groups_without_difference_is_told(tmp_path: Path) -> None:
    """Of four prompts one has scores that differ."""
    run, recorder = online_run(tmp_path, OnlineSetting("grpo", steps=1, samples=2))

    def rewards(rollout):
        scores = torch.tensor([0.7, 0.7, 0.1, 0.1, 0.0, 1.0, 0.3, 0.3])
        return {"some": scores}, scores

    run.services.clients.rewards = rewards
    train_online(run)
    assert recorder.reports[0].metrics["equal_groups"] == pytest.approx(0.75)


def test_a_critic_learns_from_equal_scores_what_they_are(tmp_path: Path) -> None:
    """One completion a prompt has none beside it that it could equal."""
    run, recorder = online_run(tmp_path, OnlineSetting("ppo", steps=1, samples=1))
    score_all(run, 0.7)
    train_online(run)
    assert recorder.reports[0].metrics["value_loss"] > 0
    assert "equal_groups" not in recorder.reports[0].metrics
