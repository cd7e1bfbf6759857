"""What a training run is made of: the things that the loop calls, and where interruptions, reports and saving live."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from alignment_trainer.algorithms import OfflineAlgorithm
from alignment_trainer.checkpoint.checkpoint import Checkpoint
from alignment_trainer.checkpoint.run_state import Checkpoints, Position, random_state, set_random_state
from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.microbatches import plan_microbatches
from alignment_trainer.data.packing import PackedBatch
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.engines.base import Engine
from alignment_trainer.process import distributed


class Interrupted(Exception):
    """Somebody asked the run to go; nothing of the unfinished step counts."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, over all ranks.

    step: steps done. metrics: means over the global batch. tokens: of packed rows, padding not counted.
    seconds: wall-clock time of the step.
    """

    step: int
    total_steps: int
    metrics: dict[str, float]
    learning_rate: float
    grad_norm: float
    tokens: int
    seconds: float


class Observer(Protocol):
    """Who wants to know: metrics, status, logs. Called on rank 0 alone."""

    def stepped(self, report: StepReport) -> None: ...

    def saved(self, checkpoint: Checkpoint) -> None: ...


@dataclass(frozen=True)
class MicroBatch:
    """Rows that this rank computes at once. weight: of each row's loss, such that all ranks' rows sum to the mean."""

    packed: PackedBatch
    reference: Tensor
    weight: Tensor


@dataclass(frozen=True)
class StepBatch:
    """The rows of one optimizer step; `micros` are this rank's share. step: counted from 0."""

    step: int
    micros: Iterator[MicroBatch]
    tokens: int


@dataclass(frozen=True)
class Data:
    """Rows with the reference's log-probs of their completions, fp32 (rows, completions); zeros where there is none."""

    examples: Sequence[PreferenceExample]
    reference: Tensor


@dataclass(frozen=True)
class LoopOptions:
    """How much at once, how often and how long. Steps are optimizer steps; a rate is of the step counted from 0."""

    micro_tokens: int
    total_steps: int
    learning_rate: Callable[[int], float]
    checkpoint_every: int
    evaluate_every: int


@dataclass
class Run:
    """One attempt's training. The same on every rank but for the share of rows.

    stop: asked between micro-batches whether this process shall go. evaluate: scores the held-out rows; collective.
    """

    engine: Engine
    algorithm: OfflineAlgorithm
    data: Data
    sampler: Sampler
    options: LoopOptions
    checkpoints: Checkpoints
    observer: Observer
    evaluate: Callable[[int], None]
    stop: Callable[[], bool] = lambda: False
    position: Position = field(default_factory=Position)
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _began: float = 0.0
    _random: dict[str, Tensor] = field(default_factory=dict)

    def batches(self) -> Iterator[StepBatch]:
        """The steps that are left, from the run's own position."""
        while self.position.step < self.options.total_steps:
            self._sums, self._began, self._random = {}, time.monotonic(), random_state()
            yield self._batch(self.position.step)

    def _batch(self, step: int) -> StepBatch:
        indices = self.sampler.batch(step)
        groups = [self.algorithm.group(self.data.examples[index]) for index in indices]
        lengths = [group.length for group in groups]
        shares = plan_microbatches(lengths, distributed.world_size(), self.options.micro_tokens)

        def micros() -> Iterator[MicroBatch]:
            for plan in shares[distributed.rank()]:
                self._leave_if_asked()
                yield MicroBatch(
                    packed=self.algorithm.task.pack([groups[place] for place in plan.places]),
                    reference=self.data.reference[[indices[place] for place in plan.places]].to(self.engine.device),
                    weight=torch.full((len(plan.places),), plan.counts / len(indices), device=self.engine.device),
                )

        return StepBatch(step, micros(), sum(lengths))

    def _leave_if_asked(self) -> None:
        """Ranks leave together, between the same two micro-batches, as if the step had never start.

        Raises Interrupted.
        """
        if distributed.any_rank(self.stop()):
            set_random_state(self._random)
            raise Interrupted

    def loss(self, micro: MicroBatch) -> Tensor:
        """This micro-batch's part of the mean loss over the global batch; its metrics are remembered for the report."""
        packed = micro.packed.to(self.engine.device)
        sums = packed.sum_per_sequence(self.engine.forward(packed))
        result = self.algorithm.loss(sums.view(len(micro.weight), -1), micro.reference)
        for name, value in result.metrics.items():
            self._sums[name] = self._sums.get(name, torch.zeros((), device=self.engine.device)) + value @ micro.weight
        return result.loss @ micro.weight

    def finish(self, batch: StepBatch) -> None:
        """The optimizer's step, and what the world hears of it."""
        learning_rate = self.options.learning_rate(batch.step)
        grad_norm = self.engine.step(learning_rate)
        totals = distributed.sum_over_ranks(torch.stack(list(self._sums.values())).double())
        self.position = self.position.after(batch.tokens)
        if distributed.rank() == 0:
            metrics = dict(zip(self._sums, totals.tolist(), strict=True))
            seconds = time.monotonic() - self._began
            step, total = self.position.step, self.options.total_steps
            self.observer.stepped(StepReport(step, total, metrics, learning_rate, grad_norm, batch.tokens, seconds))

    def after_step(self) -> None:
        """Saves and evaluates where it is time to. The last step is saved; its evaluation comes after the export."""
        step, last = self.position.step, self.position.step == self.options.total_steps
        if step % self.options.checkpoint_every == 0 or last:
            self.save()
        if step % self.options.evaluate_every == 0 and not last:
            self.evaluate(step)

    def save(self) -> Checkpoint:
        """Saves the position that was reached; nothing to do where that is saved already. Collective."""
        checkpoint = self.checkpoints.save(self.engine, self.position)
        if distributed.rank() == 0:
            self.observer.saved(checkpoint)
        return checkpoint
