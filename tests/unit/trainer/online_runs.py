"""Tiny online runs in one process: transformers samples where servers would, a frozen copy is the reference."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_runs import VOCABULARY, Recorder, tiny_classifier, tiny_llama
from torch import Tensor

from alignment_api.contract.algorithms import Critic as CriticOptions
from alignment_api.contract.algorithms import Grpo as GrpoOptions
from alignment_api.contract.algorithms import Ppo as PpoOptions
from alignment_api.contract.rewards import Regex, Reward, RewardFunction
from alignment_trainer.algorithms import ONLINE
from alignment_trainer.algorithms.schedule import WarmupCosine
from alignment_trainer.checkpoint.attempt import Start
from alignment_trainer.checkpoint.checkpoint import read_checkpoint
from alignment_trainer.checkpoint.run_state import Checkpoints, Position, restore
from alignment_trainer.data.examples import PromptExample
from alignment_trainer.data.experience import EXPERIENCE_FILE, Rollout, Sampled, Samples, load_experience, load_samples
from alignment_trainer.data.packing import pack
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.data.storage import Folder
from alignment_trainer.engines import ENGINES, OptimizerOptions
from alignment_trainer.engines.state import SavedState
from alignment_trainer.experience.critic_client import Critic, LocalCritic, NoCritic
from alignment_trainer.experience.value_trainer import PREFIX, ValueOptions, ValueTrainer
from alignment_trainer.loop.offline import LoopOptions
from alignment_trainer.loop.online import OnlineRun
from alignment_trainer.loop.online_parts import OnlineServices, Progress, Prompts, Trainees, UpdateOptions
from alignment_trainer.model.heads import scorer, value_scorer
from alignment_trainer.model.weights import fill

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
    max_update_kl: float = 0.0
    sharding: str = "none"
    value_clip: float | None = None
    value_head: float = 0.0
    """Standard deviation of the weights of the critic's head; 0 is that of a new one."""
    reward_scaling: str = "running"
    truncated: str = "score"
    gae_lambda: float = 0.95
    frozen_sampler: bool = False
    """Samples with the model as it came: works where weights are sharded, and no update's rounding changes a token."""


def options_of(setting: OnlineSetting) -> PpoOptions | GrpoOptions:
    shared: dict[str, Any] = {
        "prompts_per_rollout": 4,
        "max_new_tokens": NEW_TOKENS,
        "rewards": REWARDS,
        "epochs_per_rollout": setting.epochs,
        "max_update_kl": setting.max_update_kl,
        "truncated": setting.truncated,
    }
    if setting.algorithm == "grpo":
        return GrpoOptions(group_size=setting.samples, **shared)
    critic = CriticOptions(learning_rate=1e-3, warmup_steps=setting.warmup)
    return PpoOptions(
        completions_per_prompt=setting.samples,
        critic=critic,
        init_kl_coef=0.05,
        reward_scaling=setting.reward_scaling,
        gae_lambda=setting.gae_lambda,
        **shared,
    )


class HereAndNow:
    """Samples with the network that is being trained, and clients: the share of even tokens is the reward."""

    def __init__(self, network: Any, setting: OnlineSetting, options: PpoOptions | GrpoOptions) -> None:
        self._network = tiny_llama() if setting.frozen_sampler else network
        self._setting, self._options = setting, options
        self.judge = scorer(tiny_llama())
        self.sampled: list[tuple[int, int]] = []
        """(step, row) of every prompt that was sampled here."""
        self.never_ends = False
        self.ends_in: Callable[[str], bool] = lambda call: False
        """Whether somebody asks this process to go in the middle of the call with that name."""
        self.delays: dict[str, float] = {}
        """Seconds that the call with a name takes."""

    def sample(self, rows: Sequence[PromptExample], step: int, version: int, former: Samples) -> Samples:
        """A prompt at a time, until it is asked to go."""
        completions = dict(former.completions)
        self._network.set_attn_implementation("sdpa")
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for place in former.missing(len(rows)):
                if self._is_asked_to_go(f"sample {place}"):
                    break
                torch.manual_seed(step * 1000 + rows[place].row)
                completions[place] = tuple(
                    self._sample(rows[place].prompt, version) for _ in range(self._setting.samples)
                )
                self.sampled.append((step, rows[place].row))
        return Samples(completions, former.dropped)

    def _is_asked_to_go(self, call: str) -> bool:
        time.sleep(self.delays.get(call, 0.0))
        return self.ends_in(call)

    def _sample(self, prompt: tuple[int, ...], version: int) -> Sampled:
        """A token at a time, by the network's own logits."""
        tokens: list[int] = []
        values: list[float] = []
        while len(tokens) < NEW_TOKENS and (self.never_ends or END not in tokens):
            logits = self._network(torch.tensor([[*prompt, *tokens]])).logits[0, -1]
            logprobs = (logits / self._options.temperature).log_softmax(-1)
            tokens.append(int(torch.multinomial(logprobs.exp(), 1)))
            values.append(float(logprobs[tokens[-1]]))
        return Sampled(tuple(tokens), tuple(values), tokens[-1] == END and not self.never_ends, version)

    def rewards(self, rollout: Rollout) -> tuple[dict[str, Tensor], Tensor] | None:
        if self._is_asked_to_go("rewards"):
            return None
        completions = [completion for group in rollout.groups for completion in group.completions]
        even = torch.tensor([sum(t % 2 == 0 for t in c) / len(c) for c in completions])
        return {"even": even}, even

    def reference(self, rollout: Rollout) -> Tensor | None:
        if self._is_asked_to_go("reference"):
            return None
        with torch.no_grad():
            logprobs: Tensor = self.judge(pack(rollout.groups))
        return logprobs


class NoTiming:
    """Tells nobody."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()

    def working(self) -> AbstractContextManager[None]:
        return nullcontext()


def prompts(count: int) -> list[PromptExample]:
    generator = torch.Generator().manual_seed(5)
    rows = torch.randint(1, VOCABULARY, (count, 6), generator=generator).tolist()
    return [PromptExample(number, tuple(row), {}) for number, row in enumerate(rows, start=1)]


def critic_network(head: float) -> Any:
    """A classifier whose head is random with this standard deviation."""
    network = tiny_classifier()
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        network.score.weight.copy_(torch.randn(network.score.weight.shape, generator=generator) * head)
    return network


def value_trainer(setting: OnlineSetting, start: Start | None) -> ValueTrainer:
    """A critic of its own random body."""
    model = value_scorer(critic_network(setting.value_head))
    weights = SavedState(start.folder, PREFIX).weights if start is not None else None
    engine = ENGINES[setting.sharding](model, OptimizerOptions(0.0, 1.0), "fp32", CPU, weights)
    if start is not None:
        restore(start.folder, engine, PREFIX)
    unit = 1.0 if setting.value_head else None
    trainer = ValueTrainer(engine, ValueOptions(setting.micro_tokens, setting.value_clip, unit))
    if start is not None:
        trainer.restore_unit(start.folder)
    return trainer


def online_run(
    folder: Path,
    setting: OnlineSetting,
    start: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    critic: Critic | None = None,
) -> tuple[OnlineRun, Recorder]:
    """A run from a checkpoint, or from the tiny model; its reference is that model."""
    network = tiny_llama(seed=0 if start is None else 99)
    if start is not None:  # servers sample with the network itself
        fill(
            (network,), {name: name for name, _ in network.named_parameters()}, SavedState(start).weights, lambda _: CPU
        )
    model = scorer(network)
    options = options_of(setting)
    algorithm = ONLINE[setting.algorithm](options)
    engine = ENGINES[setting.sharding](model, OptimizerOptions(0.0, 1.0), "fp32", CPU)
    position = restore(start, engine) if start is not None else Position(kl_coef=algorithm.first_kl_coef)
    chosen = critic or (LocalCritic(lambda at: value_trainer(setting, at)) if algorithm.needs_critic else NoCritic())
    recorder = Recorder()
    rate = WarmupCosine(setting.learning_rate, setting.steps, 0.0)
    has_experience = start is not None and (start / EXPERIENCE_FILE).exists()
    all_prompts = Prompts(prompts(12), Sampler(12, options.prompts_per_rollout, seed=3))
    run = OnlineRun(
        trainees=Trainees(engine, chosen, algorithm),
        prompts=all_prompts,
        services=OnlineServices(
            clients=HereAndNow(network, setting, options),
            checkpoints=Checkpoints(Folder(folder), term=1, keep=9),
            observer=recorder,
            timing=NoTiming(),
            keep=lambda step, scored: None,
            publish=recorder.versions.append,
            evaluate=lambda at: None,
            stop=stop,
        ),
        options=LoopOptions(setting.micro_tokens, setting.steps, rate, setting.checkpoint_every, 10**9),
        update_options=UpdateOptions(
            setting.batch_size, setting.epochs, setting.max_update_kl, rate, setting.warmup, 3, 1
        ),
        progress=Progress(
            position,
            load_samples(all_prompts.of_step(position.step), Folder(start)) if start is not None else Samples(),
            load_experience(start) if start is not None and has_experience else None,
            critic_steps=chosen.begin(Start.of(read_checkpoint(Folder(start))) if start is not None else None),
        ),
    )
    return run, recorder
