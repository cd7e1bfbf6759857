"""What the critic learns is measured in deviations of the scores, and its values stay in units of the score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from online_runs import CPU, HereAndNow, OnlineSetting, critic_network, online_run
from safetensors.torch import load_file
from tiny_runs import VOCABULARY

from alignment_trainer.algorithms.reward_model import reward_model_loss
from alignment_trainer.checkpoint.checkpoint import write_parts
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.experience import Rollout
from alignment_trainer.data.packing import pack_whole
from alignment_trainer.data.storage import Folder
from alignment_trainer.engines import ENGINES, OptimizerOptions
from alignment_trainer.engines.state import SavedState
from alignment_trainer.experience.critic_client import LocalCritic
from alignment_trainer.experience.minibatches import UpdateKey
from alignment_trainer.experience.value_trainer import PREFIX, ValueBatch, ValueOptions, ValueTrainer
from alignment_trainer.loop.train import train_online
from alignment_trainer.model.heads import PackedModel, value_scorer

GROUPS = (PromptGroup((5, 6, 7), ((8, 9), (10,))), PromptGroup((11, 12), ((13, 14, 15),)))
RATE = 1e-3


def trainer(head: float = 0.0, unit: float | None = None, clip: float | None = None) -> ValueTrainer:
    engine = ENGINES["none"](value_scorer(critic_network(head)), OptimizerOptions(0.0, 1e9), "fp32", CPU)
    return ValueTrainer(engine, ValueOptions(1000, clip, unit))


def batch(values: torch.Tensor, returns: torch.Tensor, scale: float) -> ValueBatch:
    return ValueBatch(GROUPS, values, returns, torch.full((6,), 1 / 6), scale)


def update(critic: ValueTrainer, step: int, returns: torch.Tensor, scale: float) -> dict[str, float]:
    return critic.update(UpdateKey(1, step, 0, 0), RATE, batch(critic.values(GROUPS), returns, scale))


def test_the_loss_is_that_of_values_in_deviations() -> None:
    """Half the squared error of 0 against 6 and -6, in units of 3: (2^2) / 2."""
    found = update(trainer(), 0, torch.tensor([6.0, -6, 6, -6, 6, -6]), scale=3.0)
    assert found["value_loss"] == pytest.approx(2.0)


def test_a_head_of_zeros_learns_as_fast_whatever_the_unit_of_the_scores() -> None:
    """Scores a hundred times as large: the same losses, values a hundred times as large."""
    small, large = trainer(), trainer()
    returns = torch.linspace(-1, 2, 6)
    for step in range(5):
        one, other = update(small, step, returns, 0.8), update(large, step, returns * 100, 80.0)
        assert other["value_loss"] == pytest.approx(one["value_loss"], rel=1e-3)
    assert torch.allclose(large.values(GROUPS), small.values(GROUPS) * 100, rtol=1e-2, atol=0.5)
    assert small.values(GROUPS).abs().max() > 0.02


def test_values_stay_what_they_were_when_the_deviation_moves_on() -> None:
    critic = trainer()
    for step in range(3):
        update(critic, step, torch.linspace(-1, 2, 6), 0.8)
    before = critic.values(GROUPS)
    critic.update(UpdateKey(1, 3, 0, 0), 0.0, batch(before, before, 5.0))
    assert torch.equal(critic.values(GROUPS), before)


def test_a_reward_models_head_is_taken_at_its_weight() -> None:
    plain, weighted = trainer(head=0.3, unit=1.0), trainer(head=0.3, unit=0.5)
    assert torch.allclose(weighted.values(GROUPS), plain.values(GROUPS) / 2)
    weighted.update(UpdateKey(1, 0, 0, 0), 0.0, batch(weighted.values(GROUPS), torch.zeros(6), 7.0))
    assert torch.allclose(weighted.values(GROUPS), plain.values(GROUPS) / 2), "whatever the scores deviate by"


def test_a_clip_is_in_deviations() -> None:
    """Values moved by 1 of a score whose deviation is 10: a clip of 0.2 (2 of the score) bounds nothing, 0.05 does."""
    for clip, bounded in ((0.2, 0.0), (0.05, 1.0)):
        critic = trainer(head=0.3, unit=1.0, clip=clip)
        values = critic.values(GROUPS)
        found = critic.update(UpdateKey(1, 0, 0, 0), RATE, batch(values - 1, values + 50, 10.0))
        assert found["value_clip_ratio"] == pytest.approx(bounded)


def test_without_a_clip_updates_of_one_rollout_reach_returns_that_are_far_away() -> None:
    """A return of 8 where scores deviate by 2; beyond 0.4 a clip of 0.2 lets momentum alone move it."""
    reached = {}
    for clip in (None, 0.2):
        critic = trainer(clip=clip)
        old = critic.values(GROUPS)
        for step in range(60):
            critic.update(UpdateKey(1, step, 0, 0), 1e-2, batch(old, torch.full((6,), 8.0), 2.0))
        reached[clip] = critic.values(GROUPS).mean().item()
    assert reached[None] == pytest.approx(8, abs=1.0)
    assert reached[0.2] < 6


@pytest.mark.parametrize("updates", [0, 2])
def test_the_unit_is_part_of_a_checkpoint(tmp_path: Path, updates: int) -> None:
    critic = trainer()
    for step in range(updates):
        update(critic, step, torch.linspace(-1, 2, 6), 0.8)
    assert {part.name for part in write_parts(Folder(tmp_path), critic.drafts())} >= {"critic-unit.json"}
    model = value_scorer(critic_network(9.9))
    saved = SavedState(tmp_path, PREFIX).weights
    engine = ENGINES["none"](model, OptimizerOptions(0.0, 1e9), "fp32", CPU, saved)
    engine.load(tmp_path, PREFIX)
    resumed = ValueTrainer(engine, ValueOptions(1000))
    resumed.restore_unit(tmp_path)
    for step in (updates, updates + 1):
        assert torch.equal(resumed.values(GROUPS), critic.values(GROUPS))
        assert update(resumed, step, torch.linspace(-2, 5, 6), 1.7) == update(
            critic, step, torch.linspace(-2, 5, 6), 1.7
        )
    assert load_file(tmp_path / "critic-random-00000.safetensors")


def test_a_critic_that_starts_from_the_reward_model_explains_returns_at_once(tmp_path: Path) -> None:
    """Of a reward model of tokens' worths; one with a head of zeros explains nothing of the same completions."""
    judge = trained_judge()
    explained = {}
    for name, start in (("reward model", judge.state_dict()), ("zeros", critic_network(0.0).state_dict())):
        network = critic_network(0.0)
        network.load_state_dict(start)
        setting = OnlineSetting("ppo", steps=3, samples=8, epochs=1, batch_size=32)
        engine = ENGINES["none"](value_scorer(network), OptimizerOptions(0.0, 1.0), "fp32", CPU)
        critic = ValueTrainer(engine, ValueOptions(1000, None, 1.0 if name == "reward model" else None))
        run, recorder = online_run(tmp_path / name, setting, critic=LocalCritic(lambda at, made=critic: made))
        run.services = replace(run.services, clients=Judged(run.services.clients, value_scorer(judge)))
        train_online(run)
        explained[name] = sum(report.metrics["explained_variance"] for report in recorder.reports) / 3
    assert explained["reward model"] > 0.3
    assert explained["zeros"] < 0.1


class Judged(HereAndNow):
    """The reward is what a reward model says."""

    def __init__(self, clients: HereAndNow, judge: PackedModel) -> None:
        self.__dict__.update(clients.__dict__)
        self._judge = judge

    def rewards(self, rollout: Rollout) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        with torch.no_grad():
            scores = self._judge(pack_whole(rollout.groups))
        return {"judge": scores}, scores


def trained_judge() -> Any:
    """After 60 steps of 32 pairs, of which the one with the worthier tokens is the chosen one."""
    draw = torch.Generator().manual_seed(4)
    worth = torch.randn(VOCABULARY, generator=draw)
    judge = critic_network(0.3)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    for _ in range(60):
        groups = []
        for _ in range(32):
            two = [torch.randint(VOCABULARY, (8,), generator=draw) for _ in range(2)]
            two.sort(key=lambda tokens: float(worth[tokens].sum()), reverse=True)
            prompt = torch.randint(VOCABULARY, (6,), generator=draw)
            groups.append(PromptGroup(tuple(prompt.tolist()), tuple(tuple(one.tolist()) for one in two)))
        scores = value_scorer(judge)(pack_whole(groups)).view(-1, 2)
        optimizer.zero_grad()
        reward_model_loss(scores[:, 0], scores[:, 1]).mean().backward()
        optimizer.step()
    return judge.requires_grad_(True)
