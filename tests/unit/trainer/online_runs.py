"""Tiny online runs in one process: transformers samples where servers would, a frozen copy is the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_runs import VOCABULARY, Recorder, tiny_classifier, tiny_llama
from torch import Tensor

from alignment_api.algorithms import Critic as CriticOptions
from alignment_api.algorithms import Grpo as GrpoOptions
from alignment_api.algorithms import Ppo as PpoOptions
from alignment_api.rewards import Regex, Reward, RewardFunction
from alignment_trainer.algorithms import ONLINE
from alignment_trainer.algorithms.schedule import WarmupCosine
from alignment_trainer.checkpoint.attempt import Start
from alignment_trainer.checkpoint.run_state import Checkpoints, Position, restore
from alignment_trainer.data.examples import PromptExample
from alignment_trainer.data.experience import EXPERIENCE_FILE, Rollout, load_experience, mask_of, padded
from alignment_trainer.data.packing import PromptGroup, pack
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.engines import ENGINES, OptimizerOptions
from alignment_trainer.engines.state import load_weights
from alignment_trainer.experience.critic_client import Critic, LocalCritic, NoCritic
from alignment_trainer.experience.value_trainer import PREFIX, ValueTrainer
from alignment_trainer.loop.offline import LoopOptions
from alignment_trainer.loop.online import OnlineRun, UpdateOptions
from alignment_trainer.model.heads import scorer, value_scorer

CPU = torch.device("cpu")
END = 0
NEW_TOKENS = 8
REWARDS = (Reward(function=RewardFunction(regex=Regex(pattern="."))),)
"""Asked of the options, not of these runs: what is rewarded here are even token ids."""


@dataclass(frozen=True)
class OnlineSetting:
    """What a test varies."""

    algorithm: str = "ppo"
    steps: int = 3
    batch_size: int = 8
    epochs: int = 2
    micro_tokens: int = 200
    checkpoint_every: int = 100
    learning_rate: float = 1e-3
    samples: int = 4
    warmup: int = 0
    max_update_kl: float | None = None
    sharding: str = "none"
    frozen_sampler: bool = False
    """Samples with the model as it came: works where weights are sharded, and no update's rounding changes a token."""


def options_of(setting: OnlineSetting) -> PpoOptions | GrpoOptions:
    shared: dict[str, Any] = {
        "prompts_per_rollout": 4,
        "max_new_tokens": NEW_TOKENS,
        "rewards": REWARDS,
        "epochs_per_rollout": setting.epochs,
        "max_update_kl": setting.max_update_kl,
    }
    if setting.algorithm == "grpo":
        return GrpoOptions(group_size=setting.samples, **shared)
    critic = CriticOptions(learning_rate=1e-3, warmup_steps=setting.warmup)
    return PpoOptions(completions_per_prompt=setting.samples, critic=critic, init_kl_coef=0.05, **shared)


class HereAndNow:
    """Samples with the network that is being trained, and clients: the share of even tokens is the reward."""

    def __init__(self, network: Any, setting: OnlineSetting, options: PpoOptions | GrpoOptions) -> None:
        self._network = tiny_llama() if setting.frozen_sampler else network
        self._setting, self._options = setting, options
        self._reference = scorer(tiny_llama())

    def sample(self, rows: Sequence[PromptExample], step: int, version: int) -> Rollout | None:
        groups, logprobs = [], []
        self._network.set_attn_implementation("sdpa")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for row in rows:
                torch.manual_seed(step * 1000 + row.row)
                completions, values = self._sample(row.prompt)
                groups.append(PromptGroup(row.prompt, completions))
                logprobs += values
        mask = mask_of(groups)
        return Rollout(
            rows=tuple(rows),
            groups=tuple(groups),
            mask=mask,
            logprobs=padded(torch.tensor(logprobs), mask),
            finished=torch.tensor([c[-1] == END for g in groups for c in g.completions]),
            versions=torch.full((len(mask),), version),
            dropped={},
        )

    def _sample(self, prompt: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], list[float]]:
        """A token at a time, by the network's own logits."""
        completions, values = [], []
        for _ in range(self._setting.samples):
            tokens: list[int] = []
            while len(tokens) < NEW_TOKENS and END not in tokens:
                logits = self._network(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
                logprobs = (logits / self._options.temperature).log_softmax(-1)
                tokens.append(int(torch.multinomial(logprobs.exp(), 1)))
                values.append(float(logprobs[tokens[-1]]))
            completions.append(tuple(tokens))
        return tuple(completions), values

    def rewards(self, rollout: Rollout) -> tuple[dict[str, Tensor], Tensor] | None:
        completions = [completion for group in rollout.groups for completion in group.completions]
        even = torch.tensor([sum(t % 2 == 0 for t in c) / len(c) for c in completions])
        return {"even": even}, even

    def reference(self, rollout: Rollout) -> Tensor | None:
        with torch.no_grad():
            logprobs: Tensor = self._reference(pack(rollout.groups))
        return logprobs


def prompts(count: int) -> list[PromptExample]:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(1, VOCABULARY, (count, 6), generator=generator).tolist()
    return [PromptExample(number, tuple(row), {}) for number, row in enumerate(rows, start=1)]


def value_trainer(setting: OnlineSetting, start: Start | None) -> ValueTrainer:
    """A critic of its own random body, its head zero."""
    network = tiny_classifier()
    torch.nn.init.zeros_(network.score.weight)
    model = value_scorer(network)
    if start is not None:
        load_weights(model, start.folder, PREFIX)
    engine = ENGINES[setting.sharding](model, OptimizerOptions(0.0, 1.0), "fp32", CPU)
    if start is not None:
        restore(start.folder, engine, PREFIX)
    return ValueTrainer(engine, setting.micro_tokens, 0.2)


def online_run(
    folder: Path,
    setting: OnlineSetting,
    start: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    critic: Critic | None = None,
) -> tuple[OnlineRun, Recorder]:
    """A run from a checkpoint, or from the tiny model; its reference is that model."""
    network = tiny_llama(seed=0 if start is None else 99)
    model = scorer(network)
    if start is not None:
        load_weights(model, start)
    options = options_of(setting)
    algorithm = ONLINE[setting.algorithm](options)
    engine = ENGINES[setting.sharding](model, OptimizerOptions(0.0, 1.0), "fp32", CPU)
    position = restore(start, engine) if start is not None else Position(kl_coef=algorithm.first_kl_coef)
    chosen = critic or (LocalCritic(lambda at: value_trainer(setting, at)) if algorithm.needs_critic else NoCritic())
    recorder = Recorder()
    rate = WarmupCosine(setting.learning_rate, setting.steps, 0.0)
    has_experience = start is not None and (start / EXPERIENCE_FILE).exists()
    run = OnlineRun(
        engine=engine,
        critic=chosen,
        algorithm=algorithm,
        clients=HereAndNow(network, setting, options),
        prompts=prompts(12),
        sampler=Sampler(12, options.prompts_per_rollout, seed=3),
        options=LoopOptions(setting.micro_tokens, setting.steps, rate, setting.checkpoint_every, 10**9),
        update_options=UpdateOptions(
            setting.batch_size, setting.epochs, setting.max_update_kl, rate, setting.warmup, 3, 1
        ),
        checkpoints=Checkpoints(folder, term=1, keep=9),
        observer=recorder,
        keep=lambda step, scored: None,
        publish=lambda version: None,
        evaluate=lambda at: None,
        phase=lambda name: nullcontext(),
        working=nullcontext,
        stop=stop,
        position=position,
        unfinished=load_experience(start) if start is not None and has_experience else None,
        critic_steps=chosen.begin(Start(start) if start is not None else None),
    )
    return run, recorder
