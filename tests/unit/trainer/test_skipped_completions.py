"""What a reward function has skipped teaches nothing: no weight, no mean and no spread knows of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from online_runs import OnlineSetting, online_run
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from alignment_api.contract.rewards import Reward
from alignment_trainer.algorithms.advantages import group_advantages
from alignment_trainer.data.examples import PromptExample, PromptGroup
from alignment_trainer.data.experience import Rollout, Samples, Scored, mask_of
from alignment_trainer.data.storage import Folder
from alignment_trainer.experience.record import keep_rollouts, read_rollouts
from alignment_trainer.loop.online import OnlineRun
from alignment_trainer.loop.online_evaluation import evaluated
from alignment_trainer.loop.train import train_online
from alignment_trainer.rewards import FunctionScorer
from alignment_trainer.rewards.total import RewardSum

NAN = math.nan
WORDS = ["</s>", "<think>", "</think>", "<answer>", "</answer>", "a", "7", "<|extra|>"]


def words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    made.add_special_tokens({"additional_special_tokens": WORDS[1:5] + WORDS[7:]})
    return made


def rollout_of(*groups: PromptGroup) -> Rollout:
    mask = mask_of(groups)
    rows = tuple(PromptExample(place, group.prompt, {"answer": 7}) for place, group in enumerate(groups, start=1))
    count = len(mask)
    return Rollout(rows, groups, mask, torch.zeros_like(mask), torch.ones(count) > 0, torch.zeros(count), {})


def scored_of(rollout: Rollout, components: dict[str, Tensor], scores: Tensor) -> Scored:
    zeros = torch.zeros_like(rollout.mask)
    return Scored(rollout, components, scores, zeros, zeros, zeros, torch.zeros(len(scores)))


def reward_sum(*rewards: dict) -> RewardSum:
    parsed = tuple(Reward.model_validate(reward) for reward in rewards)
    return RewardSum(parsed, FunctionScorer(parsed, {}), None, words(), ends=(0,))


def test_a_groups_mean_and_spread_are_those_of_its_scores() -> None:
    """1, 0 and a skipped one: mean 1/2, std of a sample sqrt(1/2) = 0.707107; 0.5 / 0.707207 = 0.707007."""
    scores, scored = torch.tensor([[1.0, NAN, 0.0], [NAN, 3.0, NAN]]), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    advantages = group_advantages(scores, scored)
    assert advantages[0].tolist() == pytest.approx([0.707007, 0.0, -0.707007], abs=1e-6)
    assert advantages[1].tolist() == [0.0] * 3, "one score has nothing to be compared with"


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_weights_of_an_update_add_up_without_what_was_skipped(tmp_path: Path, algorithm: str) -> None:
    run, _ = online_run(tmp_path, OnlineSetting(algorithm))
    mask = torch.tensor([[1.0, 1, 1], [1, 0, 0], [1, 1, 0]])
    weights = run.trainees.algorithm.token_weights(mask * torch.tensor([[1.0], [0.0], [1.0]]))
    assert weights.sum().item() == pytest.approx(1.0)
    assert not weights[1].any()
    expected = {"ppo": [0.2, 0.2, 0.2], "grpo": [1 / 6, 1 / 6, 1 / 6]}[algorithm]
    assert weights[0].tolist() == pytest.approx(expected)
    assert not run.trainees.algorithm.token_weights(torch.zeros(3, 3)).any()


def skip(run: OnlineRun, places: list[int]) -> None:
    rewards = run.services.clients.rewards

    def some(rollout):
        components, scores = rewards(rollout)
        scores = scores.clone()
        scores[places] = NAN
        return components | {"even": scores}, scores

    run.services.clients.rewards = some


def alter(run: OnlineRun, place: int) -> None:
    """Other tokens in a completion of the first prompt, as many."""
    sample = run.services.clients.sample

    def altered(rows, step, version, former):
        samples = sample(rows, step, version, former)
        changed = list(samples.completions[0])
        changed[place] = replace(changed[place], tokens=tuple(1 + token % 5 for token in changed[place].tokens))
        return Samples({**samples.completions, 0: tuple(changed)})

    run.services.clients.sample = altered


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_what_a_skipped_completion_says_moves_no_weight(tmp_path: Path, algorithm: str) -> None:
    """Neither the policy's nor the critic's; were it scored, it would."""
    found = []
    for folder, altered, skipped in (("as it was", False, True), ("altered", True, True), ("scored", True, False)):
        run, recorder = online_run(tmp_path / folder, OnlineSetting(algorithm, steps=1, epochs=1, batch_size=16))
        if skipped:
            skip(run, [2])
        if altered:
            alter(run, 2)
        train_online(run)
        weights = torch.cat([tensor.flatten() for _, tensor in run.trainees.engine.full_weights()])
        found.append((weights, recorder.reports[0].metrics.get("value_loss", 0.0), recorder.reports[0].grad_norm))
    (plain, value_loss, norm), (changed, other_value_loss, other_norm), (_, _, scored_norm) = found
    assert other_norm == pytest.approx(norm, rel=1e-4)
    assert other_value_loss == pytest.approx(value_loss, rel=1e-4)
    assert (plain - changed).abs().mean() < 1e-6
    assert abs(scored_norm - norm) > 1e-3 * norm


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_where_all_are_skipped_nothing_is_learnt_and_nothing_breaks(tmp_path: Path, algorithm: str) -> None:
    run, recorder = online_run(tmp_path, OnlineSetting(algorithm, steps=1, epochs=1, batch_size=16))
    skip(run, list(range(16)))
    before = {name: tensor.clone() for name, tensor in run.trainees.engine.full_weights()}
    train_online(run)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.trainees.engine.full_weights())
    assert recorder.reports[0].metrics["silent_steps"] == 1.0
    assert all(math.isfinite(value) for value in recorder.reports[0].metrics.values())


def test_the_means_that_are_told_are_those_of_the_scored(tmp_path: Path) -> None:
    run, recorder = online_run(tmp_path, OnlineSetting("grpo", steps=1, epochs=1, samples=2))

    def rewards(rollout):
        scores = torch.tensor([1.0, NAN, 0.0, 0.0, 2.0, 2.0, NAN, NAN])
        return {"some": scores}, scores

    run.services.clients.rewards = rewards
    train_online(run)
    assert recorder.reports[0].metrics["reward"] == pytest.approx(1.0)
    assert recorder.reports[0].metrics["reward/some"] == pytest.approx(1.0)


def test_held_out_figures_leave_out_what_was_skipped() -> None:
    rollout = rollout_of(*(PromptGroup((5,), ((6, 0),)) for _ in range(4)))
    scores = torch.tensor([1.0, NAN, 0.0, 1.0])
    figures = evaluated(rollout, {"judge": scores, "none": torch.full((4,), NAN)}, scores, None)
    assert figures["reward"].value == pytest.approx(2 / 3)
    assert figures["reward"].count == 3
    assert figures["reward/judge"].count == 3
    assert figures["length"].count == 4
    assert "reward/none" not in figures


def test_the_record_of_a_step_says_that_a_completion_has_no_score(tmp_path: Path) -> None:
    rollout, of = (
        rollout_of(PromptGroup((5,), ((1, 5, 2, 0), (6, 0)))),
        reward_sum({"function": {"regex": {"pattern": "7"}}}),
    )
    scores = torch.tensor([NAN, 0.5])
    keep_rollouts(Folder(tmp_path), 1, of.text)(3, scored_of(rollout, {"judge": scores}, scores))
    first, second = read_rollouts(Folder(tmp_path))[0].samples
    assert (first.reward, first.components, first.text) == (None, {"judge": None}, "<think>a</think>")
    assert (second.reward, second.components, second.text) == (0.5, {"judge": 0.5}, "7")


def test_a_judge_that_only_measures_costs_no_completion_where_it_skips() -> None:
    of = reward_sum(
        {"name": "counts", "function": {"regex": {"pattern": "7"}}},
        {"name": "judge", "weight": 0, "function": {"length": {"maxTokens": 9}}},
    )
    total = of.total({"counts": torch.tensor([1.0, NAN]), "judge": torch.tensor([NAN, 0.0])})
    assert total[0].item() == 1.0
    assert total[1].isnan()


def test_reward_functions_see_tags_that_are_special_tokens_but_not_the_end() -> None:
    of = reward_sum(
        {"name": "form", "function": {"regex": {"pattern": r"\A<think>a</think><answer>7</answer>\Z"}}},
        {"name": "right", "function": {"numericAnswer": {}}},
        {"name": "extra", "function": {"regex": {"pattern": r"\|extra\|>\Z"}}},
    )
    ended, cut, thought, other = (1, 5, 2, 3, 6, 4, 0), (1, 5, 2, 3, 6, 4), (1, 6, 2, 3, 5, 4, 0), (6, 0, 7)
    rollout = rollout_of(PromptGroup((5,), (ended, cut, thought, other)))
    with of.functions:
        found = of.components(rollout, lambda: False)
    assert found is not None
    assert found["form"].tolist() == [1, 1, 0, 0]
    assert found["right"].tolist() == [1, 1, 0, 1]
    assert found["extra"].tolist() == [0, 0, 0, 1]


def test_a_thought_that_the_prompt_has_opened_holds_no_answer() -> None:
    of = reward_sum({"name": "right", "function": {"numericAnswer": {}}})
    completions = ((6, 0), (5, 2, 6, 0), (6, 2, 5, 0))
    with of.functions:
        found = of.components(
            rollout_of(PromptGroup((5, 1), completions), PromptGroup((5,), completions)), lambda: False
        )
    assert found is not None
    assert found["right"].tolist() == [0, 1, 0, 1, 1, 0]
