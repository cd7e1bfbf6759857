"""What an online run is made of: who learns, from which prompts, with whose help, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from alignment_trainer.algorithms.online import OnlineAlgorithm
from alignment_trainer.checkpoint.run_state import Checkpoints, Position
from alignment_trainer.data.examples import PromptExample
from alignment_trainer.data.experience import Experience, Rollout, Samples, Scored
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.engines.base import Engine
from alignment_trainer.experience.critic_client import Critic
from alignment_trainer.experience.minibatches import UpdateKey
from alignment_trainer.loop.offline import Observer


class Clients(Protocol):
    """The roles that sample and judge, here or over HTTP; asked by rank 0, for every rank. None where it shall go."""

    def sample(self, rows: Sequence[PromptExample], step: int, version: int, former: Samples) -> Samples:
        """With what was sampled of these prompts before; some are missing where this process shall go."""

    def rewards(self, rollout: Rollout) -> tuple[dict[str, Tensor], Tensor] | None:
        """Each reward's scores (N,) by name, and their weighted sum."""

    def reference(self, rollout: Rollout) -> Tensor | None:
        """(tokens,) log-probs by the frozen reference; no tokens at all where there is none."""


class Timing(Protocol):
    """Tells the metrics what time goes into."""

    def phase(self, name: str) -> AbstractContextManager[None]: ...

    def working(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True)
class Trainees:
    """What learns. engine: the policy's."""

    engine: Engine
    critic: Critic
    algorithm: OnlineAlgorithm


@dataclass(frozen=True)
class Prompts:
    """What completions are sampled of. sampler: says which examples a step takes."""

    examples: Sequence[PromptExample]
    sampler: Sampler

    def of_step(self, step: int) -> tuple[PromptExample, ...]:
        """step: counted from 0."""
        return tuple(self.examples[index] for index in self.sampler.batch(step))


@dataclass(frozen=True)
class OnlineServices:
    """What a run asks, saves to and tells.

    keep: keeps what a step has sampled, on rank 0. publish: hands the weights to the rollout servers as a version;
    collective. evaluate: scores held-out prompts at a position; collective. stop: whether this process shall go.
    """

    clients: Clients
    checkpoints: Checkpoints
    observer: Observer
    timing: Timing
    keep: Callable[[int, Scored], None]
    publish: Callable[[int], None]
    evaluate: Callable[[Position], None]
    stop: Callable[[], bool]


@dataclass(frozen=True)
class UpdateOptions:
    """How rollouts become updates. max_update_kl: 0 for none. critic_rate: of the step counted from 0. warmup:
    critic's updates before the actor's first. Seeds and keys: see UpdateKey."""

    batch_size: int
    epochs: int
    max_update_kl: float
    critic_rate: Callable[[int], float]
    warmup: int
    seed: int
    attempt: int


@dataclass(frozen=True)
class Minibatch:
    """One optimizer step's completions of an experience."""

    key: UpdateKey
    experience: Experience
    indices: tuple[int, ...]


@dataclass
class Progress:
    """How far a run has come; what a checkpoint holds beside weights and optimizers.

    samples: what has been sampled for the next step, on rank 0, until its first update: a checkpoint of the position
    before it may be sealed. unfinished: the experience made of them, until its updates are done. critic_steps:
    optimizer steps of the critic so far.
    """

    position: Position = field(default_factory=Position)
    samples: Samples = field(default_factory=Samples)
    unfinished: Experience | None = None
    critic_steps: int = 0


@dataclass
class StepTally:
    """What the report of the step that runs is made of.

    figures: of the rollout. updates: name -> its value after each update. tokens: computed by this rank.
    has_learnt: whether the policy differs from the one that the servers have.
    """

    figures: dict[str, float] = field(default_factory=dict)
    updates: dict[str, list[float]] = field(default_factory=dict)
    tokens: int = 0
    has_learnt: bool = False
    began: float = field(default_factory=time.monotonic)

    def add_update(self, found: dict[str, float]) -> None:
        """An update's metrics."""
        for name, value in found.items():
            self.updates.setdefault(name, []).append(value)

    def means(self) -> dict[str, float]:
        """Over the updates."""
        return {name: sum(values) / len(values) for name, values in self.updates.items()}
