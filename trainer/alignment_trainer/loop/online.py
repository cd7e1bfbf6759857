"""What an online run is made of: the things that `train_online` calls."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from alignment_trainer.algorithms.advantages import RunningMoments, kl_estimate
from alignment_trainer.algorithms.online import Targets, TokenBatch
from alignment_trainer.checkpoint.checkpoint import Write, write_parts
from alignment_trainer.checkpoint.run_state import Position
from alignment_trainer.data.drafts import Draft
from alignment_trainer.data.examples import PromptExample
from alignment_trainer.data.experience import (
    Experience,
    Rollout,
    Samples,
    Scored,
    experience_draft,
    flatten,
    mask_of,
    padded,
    rollout_of,
    save_samples,
    subgroups,
    with_ends,
)
from alignment_trainer.data.packing import pack
from alignment_trainer.engines.scoring import token_values
from alignment_trainer.experience.metrics import rollout_metrics
from alignment_trainer.experience.minibatches import Micro, UpdateKey, minibatches, plan_micros
from alignment_trainer.experience.value_trainer import ValueBatch
from alignment_trainer.loop import guard
from alignment_trainer.loop.offline import Interrupted, LoopOptions, StepReport, pause
from alignment_trainer.loop.online_parts import (
    Minibatch,
    OnlineServices,
    Progress,
    Prompts,
    StepTally,
    Trainees,
    UpdateOptions,
)
from alignment_trainer.process import distributed
from alignment_trainer.process.metrics import finite_ones

T = TypeVar("T")


@dataclass
class OnlineRun:
    """One attempt's training: what `train_online` calls. The same on every rank."""

    trainees: Trainees
    prompts: Prompts
    services: OnlineServices
    options: LoopOptions
    update_options: UpdateOptions
    progress: Progress
    tally: StepTally = field(default_factory=StepTally)

    def __post_init__(self) -> None:
        self.services.checkpoints.extra_parts = self._extra_parts

    @property
    def position(self) -> Position:
        """Where in the run it is."""
        return self.progress.position

    @position.setter
    def position(self, reached: Position) -> None:
        self.progress.position = reached

    def batches(self) -> Iterator[tuple[PromptExample, ...]]:
        """The prompts of each step that is left, from the run's own position."""
        while self.position.step < self.options.total_steps:
            self.tally = StepTally(has_learnt=self.position.updates > 0)
            yield self.prompts.of_step(self.position.step)

    def rollout(self, rows: tuple[PromptExample, ...]) -> Rollout:
        """The prompts' completions, by weights that are new enough. Raises Interrupted, with some of them kept."""
        progress, position = self.progress, self.position

        def sample() -> Rollout | None:
            progress.samples = self.services.clients.sample(rows, position.step, position.version, progress.samples)
            return None if progress.samples.missing(len(rows)) else rollout_of(rows, progress.samples)

        with self.services.timing.phase("rollout"):
            return self._asked(sample)

    def score(self, rollout: Rollout) -> Scored:
        """What rewards, reference, critic and the policy itself say of them."""
        with self.services.timing.phase("reward"):
            components, scores = self._asked(lambda: self.services.clients.rewards(rollout))
        with self.services.timing.phase("reference"):
            reference = self._asked(lambda: self.services.clients.reference(rollout))
        with self.services.timing.phase("values"):
            values, end_values = self._values(rollout)
        with self.services.timing.phase("logprobs"), self.services.timing.working():
            logprobs = padded(
                token_values(self.trainees.engine.forward, rollout.groups, self.options.micro_tokens), rollout.mask
            )
        return Scored(
            rollout=rollout,
            components=components,
            scores=scores,
            policy_logprobs=logprobs,
            ref_logprobs=padded(reference, rollout.mask) if len(reference) else logprobs,
            values=values,
            end_values=end_values,
        )

    def _values(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """(N, T) the critic's of the states before tokens, (N,) of those in which completions were cut off."""
        cut_off = ~rollout.finished.bool() & self.trainees.algorithm.bootstraps
        groups = with_ends(rollout.groups, cut_off)
        found = padded(self.trainees.critic.values(groups), mask_of(groups))
        ends = found.gather(1, rollout.lengths.long().clamp(max=found.shape[1] - 1)[:, None])[:, 0]
        return found[:, : rollout.mask.shape[1]] * rollout.mask, ends * cut_off

    def learn_from(self, scored: Scored) -> Experience:
        """Advantages and returns, and everything else that the updates need."""
        kl_coef = self.position.kl_coef
        targets = self.trainees.algorithm.targets(scored, kl_coef)
        if distributed.rank() == 0:
            self.services.keep(self.position.step + 1, scored)
        rollout, mask = scored.rollout, scored.rollout.mask
        kl = kl_estimate(scored.policy_logprobs, scored.ref_logprobs, "k3")
        mean_kl = ((kl * mask).sum() / mask.sum()).item()
        if math.isfinite(mean_kl):
            kl_coef_next = self.trainees.algorithm.next_kl_coef(kl_coef, mean_kl, len(mask))
            self.position = replace(self.position, kl_coef=kl_coef_next)
        self.position = replace(self.position, scores=self._scores_seen(scored, targets))
        self.tally.figures = rollout_metrics(scored, targets, self.position) | {
            "kl": mean_kl,
            "kl_coef": kl_coef,
            "reward_scale": self._reward_scale,
        }
        return Experience(
            groups=rollout.groups,
            mask=mask,
            learnt=mask * targets.trained[:, None],
            rollout_logprobs=rollout.logprobs,
            policy_logprobs=scored.policy_logprobs,
            ref_logprobs=scored.ref_logprobs,
            values=scored.values,
            advantages=targets.advantages,
            returns=targets.returns,
        )

    def _scores_seen(self, scored: Scored, targets: Targets) -> RunningMoments:
        if not self.trainees.algorithm.scales_rewards:
            return self.position.scores
        return self.position.scores.after(targets.scores[self.trainees.algorithm.judged(scored)])

    @property
    def _reward_scale(self) -> float:
        return self.position.scores.deviation if self.trainees.algorithm.scales_rewards else 1.0

    def take_unfinished(self) -> Experience | None:
        """The experience that a former attempt had begun to learn from, once."""
        experience, self.progress.unfinished = self.progress.unfinished, None
        return experience

    def minibatches(self, experience: Experience) -> Iterator[Minibatch]:
        """The updates that are left of this step; they end early where the policy has gone far enough.

        Raises Interrupted between two of them.
        """
        self.progress.unfinished = experience
        step, each = self.position.step, []
        for epoch in range(self.update_options.epochs):
            parts = minibatches(
                experience.groups,
                experience.learnt.any(dim=1).tolist(),
                self.update_options.batch_size,
                (self.update_options.seed, step, epoch),
            )
            each += [
                Minibatch(UpdateKey(self.update_options.attempt, step, epoch, number), experience, part)
                for number, part in enumerate(parts)
            ]
        for minibatch in each[self.position.updates :]:
            self._leave_if_asked()
            yield minibatch
            self.progress.samples = Samples()
            self.position = replace(self.position, updates=self.position.updates + 1)
            if self._far_enough():
                break
        self.progress.samples, self.progress.unfinished = Samples(), None

    def update(self, minibatch: Minibatch) -> None:
        """One optimizer step of the critic and, once that is warm, of the policy, side by side."""
        experience, indices = minibatch.experience, minibatch.indices
        weights = torch.zeros_like(experience.mask)
        weights[list(indices)] = self.trainees.algorithm.token_weights(experience.learnt[list(indices)])
        chosen = subgroups(experience.groups, indices)
        batch = ValueBatch(
            groups=tuple(group for group, _ in chosen),
            values=experience.flat("values", indices),
            returns=experience.flat("returns", indices),
            weights=_token_mean(experience.flat("learnt", indices)),
            scale=self._reward_scale,
        )
        with self.services.timing.phase("update"):
            self.trainees.critic.start_update(minibatch.key, self.update_options.critic_rate(self.position.step), batch)
            with self.services.timing.working():
                found = self._update_policy(experience, indices, weights) if self._has_signal(minibatch) else {}
            found |= self.trainees.critic.finish_update()
        self.progress.critic_steps += not guard.was_skipped(found.get("value_gradient_norm", 0.0))
        self._count(found, experience, indices)
        self.tally.add_update(finite_ones(found))

    def _count(self, found: dict[str, float], experience: Experience, indices: tuple[int, ...]) -> None:
        """Raises UserError where too many updates were not finite."""
        norms = [found[name] for name in ("gradient_norm", "value_gradient_norm") if name in found]
        step, rate = self.position.step, self.options.learning_rate(self.position.step)
        skipped = guard.was_skipped(*norms)
        rows = guard.prompts_to_blame(experience, indices, self.prompts.of_step(step)) if skipped else ()
        skips = guard.count(self.position.skips, step + 1, norms, rate, rows)
        self.position = replace(self.position, skips=skips)

    @property
    def _is_warm(self) -> bool:
        return not self.trainees.algorithm.needs_critic or self.progress.critic_steps >= self.update_options.warmup

    def _has_signal(self, minibatch: Minibatch) -> bool:
        """The same on every rank. Without one the optimizer's memory would move the policy all the same."""
        advantages = minibatch.experience.advantages[list(minibatch.indices)]
        return self._is_warm and self.trainees.algorithm.teaches(advantages, self.position.kl_coef)

    def _update_policy(self, experience: Experience, indices: tuple[int, ...], weights: Tensor) -> dict[str, float]:
        shares = plan_micros(experience.groups, indices, distributed.world_size(), self.options.micro_tokens)
        sums: dict[str, Tensor] = {}
        for micro in shares[distributed.rank()]:
            weight = flatten(weights, experience.mask, micro.indices).to(self.trainees.engine.device) * micro.counts
            result = self._loss(experience, micro)
            self.trainees.engine.backward((result[0] * weight).sum())
            for name, value in result[1].items():
                sums[name] = sums.get(name, torch.zeros((), device=self.trainees.engine.device)) + value @ weight
        norm = self.trainees.engine.step(self.options.learning_rate(self.position.step))
        totals = distributed.sum_over_ranks(torch.stack(list(sums.values())).double().cpu())
        self.tally.has_learnt = True
        return dict(zip(sums, totals.tolist(), strict=True)) | {"gradient_norm": norm}

    def _loss(self, experience: Experience, micro: Micro) -> tuple[Tensor, dict[str, Tensor]]:
        device = self.trainees.engine.device
        logprobs = self.trainees.engine.forward(pack(micro.groups).to(device))
        self.tally.tokens += sum(group.length for group in micro.groups) * micro.counts
        names = ("policy_logprobs", "rollout_logprobs", "ref_logprobs", "advantages")
        batch = TokenBatch(**{name: experience.flat(name, micro.indices).to(device) for name in names})
        result = self.trainees.algorithm.loss(logprobs, batch, self.position.kl_coef)
        return result.loss, result.metrics

    def deliver(self) -> None:
        """Ends the step: the servers get its weights, the world its report."""
        tokens = int(distributed.sum_over_ranks(torch.tensor(self.tally.tokens)).item())
        self.position = self.position.after(tokens)
        if self.tally.has_learnt:
            self.position, self.tally.has_learnt = replace(self.position, version=self.position.step), False
            with self.services.timing.phase("deliver"):
                self.services.publish(self.position.version)
        if distributed.rank() == 0:
            self.services.observer.stepped(self._report(tokens))

    def _report(self, tokens: int) -> StepReport:
        means = self.tally.means() | {
            "weight_version": float(self.position.version),
            "skipped_steps": float(self.position.skips.skipped),
        }
        return StepReport(
            step=self.position.step,
            total_steps=self.options.total_steps,
            grad_norm=means.pop("gradient_norm", 0.0),
            metrics=self.tally.figures | means,
            learning_rate=self.options.learning_rate(self.position.step - 1),
            tokens=tokens,
            seconds=time.monotonic() - self.tally.began,
        )

    def after_step(self) -> None:
        """Saves and evaluates where it is time to. The last step is saved; its evaluation comes after the export."""
        step, last = self.position.step, self.position.step == self.options.total_steps
        self.services.checkpoints.poll()
        if step % self.options.checkpoint_every == 0 or last:
            self.save()
        if step % self.options.evaluate_every == 0 and not last:
            with self.services.timing.phase("evaluate"):
                self.services.evaluate(self.position)

    def save(self) -> None:
        """Saves the position that was reached, in the middle of a step too, actor and critic together, in the
        background. Collective."""
        with pause(self.services.checkpoints, self.services.observer):
            self.settle()
            self.services.checkpoints.save(self.trainees.engine, self.position, self.services.observer.saved)

    def settle(self) -> None:
        """Waits until what was saved is sealed, and keeps beside it what was sampled since. Raises what kept it from
        being sealed."""
        self.services.checkpoints.settle()
        newest, samples = self.services.checkpoints.newest_of(self.position), self.progress.samples
        if distributed.rank() == 0 and newest is not None and samples.completions:
            save_samples(self.prompts.of_step(self.position.step), samples, newest.place)

    def close(self) -> None:
        """Waits until what is still on its way is sealed, or is not: the run has ended by another error."""
        self.services.checkpoints.close()

    def _extra_parts(self, name: str) -> Write:
        critic, drafts = self.trainees.critic.snapshot(name), self._draft_experience()
        return lambda place: [*critic(place), *write_parts(place, drafts)]

    def _draft_experience(self) -> list[Draft]:
        unfinished = self.progress.unfinished if distributed.rank() == 0 else None
        return [experience_draft(unfinished)] if unfinished is not None else []

    def _far_enough(self) -> bool:
        limit, seen = self.update_options.max_update_kl, self.tally.updates.get("update_kl")
        return limit > 0 and seen is not None and seen[-1] > limit

    def _leave_if_asked(self) -> None:
        if distributed.any_rank(self.services.stop()):
            raise Interrupted

    def _asked(self, ask: Callable[[], T | None]) -> T:
        """Rank 0's answer, on every rank. Raises Interrupted where there is none."""
        answer = distributed.ask_first_rank(ask)
        if answer is None:
            raise Interrupted
        return answer


def _token_mean(learnt: Tensor) -> Tensor:
    """(tokens,) weights by which every token that is learnt from counts the same. learnt: (tokens,) 1 or 0."""
    return learnt / learnt.sum().clamp(min=1)
