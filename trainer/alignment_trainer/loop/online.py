"""What an online run is made of: the things that `train_online` calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from alignment_trainer.algorithms.advantages import kl_estimate
from alignment_trainer.algorithms.online import OnlineAlgorithm, TokenBatch
from alignment_trainer.checkpoint.checkpoint import Checkpoint, Part, seal_part
from alignment_trainer.checkpoint.run_state import Checkpoints, Position
from alignment_trainer.data.examples import PromptExample
from alignment_trainer.data.experience import (
    Experience,
    Rollout,
    Scored,
    flatten,
    padded,
    save_experience,
    subgroups,
)
from alignment_trainer.data.packing import pack
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.engines.base import Engine
from alignment_trainer.engines.scoring import token_values
from alignment_trainer.experience.critic_client import Critic
from alignment_trainer.experience.metrics import rollout_metrics
from alignment_trainer.experience.minibatches import Micro, UpdateKey, minibatches, plan_micros
from alignment_trainer.experience.value_trainer import ValueBatch
from alignment_trainer.loop import guard
from alignment_trainer.loop.offline import Interrupted, LoopOptions, Observer, StepReport
from alignment_trainer.process import distributed
from alignment_trainer.process.metrics import finite_ones

T = TypeVar("T")


class Clients(Protocol):
    """The roles that sample and judge, here or over HTTP; asked by rank 0, for every rank. None where it shall go."""

    def sample(self, rows: Sequence[PromptExample], step: int, version: int) -> Rollout | None: ...

    def rewards(self, rollout: Rollout) -> tuple[dict[str, Tensor], Tensor] | None:
        """Each reward's scores (N,) by name, and their weighted sum."""

    def reference(self, rollout: Rollout) -> Tensor | None:
        """(tokens,) log-probs by the frozen reference; no tokens at all where there is none."""


@dataclass(frozen=True)
class UpdateOptions:
    """How rollouts become updates. critic_rate: of the step counted from 0. warmup: critic's updates before the
    actor's first. Seeds and keys: see UpdateKey."""

    batch_size: int
    epochs: int
    max_update_kl: float | None
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
class OnlineRun:
    """One attempt's training. The same on every rank.

    keep: keeps what a step has sampled, on rank 0. publish: hands the weights to the rollout servers as a version;
    collective. evaluate: scores held-out prompts at a position; collective. phase, working: tell the metrics what time
    goes into. unfinished: what a checkpoint held of the updates of the next step. critic_steps: optimizer steps of the
    critic so far.
    """

    engine: Engine
    critic: Critic
    algorithm: OnlineAlgorithm
    clients: Clients
    prompts: Sequence[PromptExample]
    sampler: Sampler
    options: LoopOptions
    update_options: UpdateOptions
    checkpoints: Checkpoints
    observer: Observer
    keep: Callable[[int, Scored], None]
    publish: Callable[[int], None]
    evaluate: Callable[[Position], None]
    phase: Callable[[str], AbstractContextManager[None]]
    working: Callable[[], AbstractContextManager[None]]
    stop: Callable[[], bool] = lambda: False
    position: Position = field(default_factory=Position)
    unfinished: Experience | None = None
    critic_steps: int = 0
    _sums: dict[str, list[float]] = field(default_factory=dict)
    _told: dict[str, float] = field(default_factory=dict)
    _began: float = 0.0
    _tokens: int = 0
    _has_learnt: bool = False

    def __post_init__(self) -> None:
        self.checkpoints.extra_parts = self._write_extra_parts
        self._has_learnt = self.position.updates > 0

    def batches(self) -> Iterator[tuple[PromptExample, ...]]:
        """The prompts of each step that is left, from the run's own position."""
        while self.position.step < self.options.total_steps:
            self._sums, self._told, self._began, self._tokens = {}, {}, time.monotonic(), 0
            yield tuple(self.prompts[index] for index in self.sampler.batch(self.position.step))

    def rollout(self, rows: tuple[PromptExample, ...]) -> Rollout:
        """The prompts' completions, by weights that are new enough."""
        with self.phase("rollout"):
            return self._asked(lambda: self.clients.sample(rows, self.position.step, self.position.version))

    def score(self, rollout: Rollout) -> Scored:
        """What rewards, reference, critic and the policy itself say of them."""
        with self.phase("reward"):
            components, scores = self._asked(lambda: self.clients.rewards(rollout))
        with self.phase("reference"):
            reference = self._asked(lambda: self.clients.reference(rollout))
        with self.phase("values"):
            values = self.critic.values(rollout.groups)
        with self.phase("logprobs"), self.working():
            logprobs = padded(
                token_values(self.engine.forward, rollout.groups, self.options.micro_tokens), rollout.mask
            )
        return Scored(
            rollout=rollout,
            components=components,
            scores=scores,
            policy_logprobs=logprobs,
            ref_logprobs=padded(reference, rollout.mask) if len(reference) else logprobs,
            values=padded(values, rollout.mask),
        )

    def learn_from(self, scored: Scored) -> Experience:
        """Advantages and returns, and everything else that the updates need."""
        kl_coef = self.position.kl_coef
        targets = self.algorithm.targets(scored, kl_coef)
        if distributed.rank() == 0:
            self.keep(self.position.step + 1, scored)
        rollout, mask = scored.rollout, scored.rollout.mask
        kl = kl_estimate(scored.policy_logprobs, scored.ref_logprobs, "k3")
        mean_kl = ((kl * mask).sum() / mask.sum()).item()
        self._told = rollout_metrics(scored, targets, self.position) | {"kl": mean_kl, "kl_coef": kl_coef}
        if math.isfinite(mean_kl):
            next_coef = self.algorithm.next_kl_coef(kl_coef, mean_kl, len(mask))
            self.position = replace(self.position, kl_coef=next_coef)
        return Experience(
            groups=rollout.groups,
            mask=mask,
            learnt=mask * scored.counted[:, None],
            rollout_logprobs=rollout.logprobs,
            policy_logprobs=scored.policy_logprobs,
            ref_logprobs=scored.ref_logprobs,
            values=scored.values,
            advantages=targets.advantages,
            returns=targets.returns,
        )

    def take_unfinished(self) -> Experience | None:
        """The experience that a former attempt had begun to learn from, once."""
        experience, self.unfinished = self.unfinished, None
        return experience

    def minibatches(self, experience: Experience) -> Iterator[Minibatch]:
        """The updates that are left of this step; they end early where the policy has gone far enough.

        Raises Interrupted between two of them.
        """
        self.unfinished = experience
        step, each = self.position.step, []
        for epoch in range(self.update_options.epochs):
            parts = minibatches(
                experience.groups, self.update_options.batch_size, (self.update_options.seed, step, epoch)
            )
            each += [
                Minibatch(UpdateKey(self.update_options.attempt, step, epoch, number), experience, part)
                for number, part in enumerate(parts)
            ]
        for minibatch in each[self.position.updates :]:
            self._leave_if_asked()
            yield minibatch
            self.position = replace(self.position, updates=self.position.updates + 1)
            if self._far_enough():
                break
        self.unfinished = None

    def update(self, minibatch: Minibatch) -> None:
        """One optimizer step of the critic and, once that is warm, of the policy, side by side."""
        experience, indices = minibatch.experience, minibatch.indices
        weights = torch.zeros_like(experience.mask)
        weights[list(indices)] = self.algorithm.token_weights(experience.learnt[list(indices)])
        chosen = subgroups(experience.groups, indices)
        batch = ValueBatch(
            groups=tuple(group for group, _ in chosen),
            values=experience.flat("values", indices),
            returns=experience.flat("returns", indices),
            weights=_token_mean(experience.flat("learnt", indices)),
        )
        with self.phase("update"):
            self.critic.start_update(minibatch.key, self.update_options.critic_rate(self.position.step), batch)
            with self.working():
                found = self._update_policy(experience, indices, weights) if self._has_signal(minibatch) else {}
            found |= self.critic.finish_update()
        self.critic_steps += not guard.was_skipped(found.get("value_gradient_norm", 0.0))
        self._count(found, experience, indices)
        for name, value in finite_ones(found).items():
            self._sums.setdefault(name, []).append(value)

    def _count(self, found: dict[str, float], experience: Experience, indices: tuple[int, ...]) -> None:
        """Raises UserError where too many updates were not finite."""
        norms = [found[name] for name in ("gradient_norm", "value_gradient_norm") if name in found]
        step, rate = self.position.step, self.options.learning_rate(self.position.step)
        rows = guard.prompts_to_blame(experience, indices, [self.prompts[i] for i in self.sampler.batch(step)])
        skips = guard.count(self.position.skips, step + 1, norms, rate, rows)
        self.position = replace(self.position, skips=skips)

    @property
    def _is_warm(self) -> bool:
        return not self.algorithm.needs_critic or self.critic_steps >= self.update_options.warmup

    def _has_signal(self, minibatch: Minibatch) -> bool:
        """The same on every rank. Without one the optimizer's memory would move the policy all the same."""
        advantages = minibatch.experience.advantages[list(minibatch.indices)]
        return self._is_warm and self.algorithm.teaches(advantages, self.position.kl_coef)

    def _update_policy(self, experience: Experience, indices: tuple[int, ...], weights: Tensor) -> dict[str, float]:
        shares = plan_micros(experience.groups, indices, distributed.world_size(), self.options.micro_tokens)
        sums: dict[str, Tensor] = {}
        for micro in shares[distributed.rank()]:
            weight = flatten(weights, experience.mask, micro.indices).to(self.engine.device) * micro.counts
            result = self._loss(experience, micro)
            self.engine.backward((result[0] * weight).sum())
            for name, value in result[1].items():
                sums[name] = sums.get(name, torch.zeros((), device=self.engine.device)) + value @ weight
        norm = self.engine.step(self.options.learning_rate(self.position.step))
        totals = distributed.sum_over_ranks(torch.stack(list(sums.values())).double().cpu())
        self._has_learnt = True
        return dict(zip(sums, totals.tolist(), strict=True)) | {"gradient_norm": norm}

    def _loss(self, experience: Experience, micro: Micro) -> tuple[Tensor, dict[str, Tensor]]:
        device = self.engine.device
        logprobs = self.engine.forward(pack(micro.groups).to(device))
        self._tokens += sum(group.length for group in micro.groups) * micro.counts
        names = ("policy_logprobs", "rollout_logprobs", "ref_logprobs", "advantages")
        batch = TokenBatch(**{name: experience.flat(name, micro.indices).to(device) for name in names})
        result = self.algorithm.loss(logprobs, batch, self.position.kl_coef)
        return result.loss, result.metrics

    def deliver(self) -> None:
        """Ends the step: the servers get its weights, the world its report."""
        tokens = int(distributed.sum_over_ranks(torch.tensor(self._tokens)).item())
        self.position = self.position.after(tokens)
        if self._has_learnt:
            self.position, self._has_learnt = replace(self.position, version=self.position.step), False
            with self.phase("deliver"):
                self.publish(self.position.version)
        if distributed.rank() == 0:
            means = {name: sum(values) / len(values) for name, values in self._sums.items()}
            norm = means.pop("gradient_norm", 0.0)
            step, rate = self.position.step, self.options.learning_rate(self.position.step - 1)
            seconds = time.monotonic() - self._began
            told = self._told | means | {"weight_version": float(self.position.version)}
            told["skipped_steps"] = float(self.position.skips.skipped)
            self.observer.stepped(StepReport(step, self.options.total_steps, told, rate, norm, tokens, seconds))

    def after_step(self) -> None:
        """Saves and evaluates where it is time to. The last step is saved; its evaluation comes after the export."""
        step, last = self.position.step, self.position.step == self.options.total_steps
        if step % self.options.checkpoint_every == 0 or last:
            self.save()
        if step % self.options.evaluate_every == 0 and not last:
            with self.phase("evaluate"):
                self.evaluate(self.position)

    def save(self) -> Checkpoint:
        """Saves the position that was reached, in the middle of a step too; actor and critic together. Collective."""
        checkpoint = self.checkpoints.save(self.engine, self.position)
        if distributed.rank() == 0:
            self.observer.saved(checkpoint)
        return checkpoint

    def _write_extra_parts(self, folder: Path) -> list[Part]:
        parts = self.critic.write(folder)
        if self.unfinished is not None and distributed.rank() == 0:
            parts = [*parts, seal_part(save_experience(self.unfinished, folder))]
        return parts

    def _far_enough(self) -> bool:
        limit, seen = self.update_options.max_update_kl, self._sums.get("update_kl")
        return limit is not None and seen is not None and seen[-1] > limit

    def _leave_if_asked(self) -> None:
        if distributed.any_rank(self.stop()):
            raise Interrupted

    def _asked(self, ask: Callable[[], T | None]) -> T:
        """Rank 0's answer, on every rank. Raises Interrupted where there is none."""
        answer = distributed.from_first_rank(ask() if distributed.rank() == 0 else None)
        if answer is None:
            raise Interrupted
        return answer


def _token_mean(learnt: Tensor) -> Tensor:
    """(tokens,) weights by which every token that is learnt from counts the same. learnt: (tokens,) 1 or 0."""
    return learnt / learnt.sum().clamp(min=1)
