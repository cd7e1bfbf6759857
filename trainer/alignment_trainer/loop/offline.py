"""What a training run is made of: the things that the loop calls, and where interruptions, reports and saving live."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from alignment_trainer.algorithms import OfflineAlgorithm, ScoredRows
from alignment_trainer.algorithms.base import LossAndMetrics
from alignment_trainer.checkpoint.checkpoint import Checkpoint
from alignment_trainer.checkpoint.run_state import Checkpoints, Position, random_state, set_random_state
from alignment_trainer.data.examples import Example, PromptGroup
from alignment_trainer.data.microbatches import plan_microbatches
from alignment_trainer.data.packing import PackedBatch, on_device
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.data.sharing import Shared, share_prompts
from alignment_trainer.engines.base import Engine
from alignment_trainer.engines.scoring import score_sequences
from alignment_trainer.loop import guard
from alignment_trainer.process import distributed


class Interrupted(Exception):
    """Somebody asked the run to go; nothing of the unfinished step counts."""


def leave_if_asked(stop: Callable[[], bool]) -> None:
    """Raises Interrupted on every rank once one was asked to go; collective."""
    if distributed.any_rank(stop()):
        raise Interrupted


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
    """Who wants to know: metrics, status, logs. Called on rank 0 alone; `saved` by the thread that writes."""

    def stepped(self, report: StepReport) -> None: ...

    def saved(self, checkpoint: Checkpoint) -> None: ...

    def paused(self, seconds: float, waited: bool) -> None:
        """To save, the training thread stood still. waited: also for the checkpoint before, which was being written."""


@contextmanager
def pause(checkpoints: Checkpoints, observer: Observer) -> Iterator[None]:
    """For what keeps the training thread from the next step; the observer hears of it."""
    began, waited = time.monotonic(), checkpoints.is_writing()
    yield
    if distributed.rank() == 0:
        observer.paused(time.monotonic() - began, waited)


@dataclass(frozen=True)
class MicroBatch:
    """Rows that this rank computes at once.

    rows: their numbers in the data, from 1. packed: rows that share a prompt as one. columns: (rows, completions) which
    of the packed completions are each row's. given: what the loss sees, with scores of nothing. weight: of each row's
    loss, such that all ranks' rows sum to the mean.
    """

    rows: tuple[int, ...]
    packed: PackedBatch
    columns: Tensor
    given: ScoredRows
    weight: Tensor


@dataclass(frozen=True)
class StepBatch:
    """The rows of one optimizer step; `micros` are this rank's share. step: counted from 0."""

    step: int
    rows: tuple[int, ...]
    micros: Iterator[MicroBatch]
    tokens: int


@dataclass(frozen=True)
class TrainingRows:
    """Rows, the order in which steps take them, and what the reference says of each.

    reference: log-probs of the completions, fp32 (rows, completions); zeros where there is none.
    """

    examples: Sequence[Example]
    sampler: Sampler
    reference: Tensor


@dataclass(frozen=True)
class Learner:
    """What learns, and by which loss."""

    engine: Engine
    algorithm: OfflineAlgorithm


@dataclass(frozen=True)
class LoopOptions:
    """How much at once, how often and how long. Steps are optimizer steps; a rate is of the step counted from 0."""

    micro_tokens: int
    total_steps: int
    learning_rate: Callable[[int], float]
    checkpoint_every: int
    evaluate_every: int


@dataclass(frozen=True)
class RunHooks:
    """Whom a run tells and asks.

    evaluate: scores the held-out rows after so many steps; collective, may raise Interrupted. stop: asked between
    micro-batches whether this process shall go.
    """

    observer: Observer
    evaluate: Callable[[int], None] = lambda step: None
    stop: Callable[[], bool] = lambda: False


@dataclass
class StepTally:
    """What this rank has gathered of the step that runs. random: its random numbers as they were before.

    losses: of each micro-batch, with its rows.
    """

    began: float = field(default_factory=time.monotonic)
    random: dict[str, Tensor] = field(default_factory=random_state)
    sums: dict[str, Tensor] = field(default_factory=dict)
    losses: list[tuple[tuple[int, ...], Tensor]] = field(default_factory=list)

    def add(self, micro: MicroBatch, found: LossAndMetrics) -> None:
        self.losses.append((micro.rows, found.loss.detach()))
        for name, value in found.metrics.items():
            part = value @ micro.weight
            self.sums[name] = self.sums[name] + part if name in self.sums else part

    def totals(self) -> dict[str, float]:
        """Metrics over all ranks; collective."""
        totals = distributed.sum_over_ranks(torch.stack(list(self.sums.values())).double())
        return dict(zip(self.sums, totals.tolist(), strict=True))


def _given(
    examples: Sequence[Example], learned: Sequence[PromptGroup], reference: Tensor, before: Tensor
) -> ScoredRows:
    """What a loss sees of rows beside their scores."""
    lengths = torch.tensor([group.trained_lengths for group in learned])
    return ScoredRows(
        scores=torch.zeros_like(reference),
        reference=reference,
        lengths=lengths,
        labels=torch.tensor([example.label for example in examples]),
        before=before,
        own_weights=_own_weights(examples),
        margins=torch.tensor([math.nan if example.margin is None else example.margin for example in examples]),
    )


def _columns(shared: Sequence[Shared]) -> Tensor:
    """(rows, completions) which completions of groups that are packed one after the other are each row's."""
    starts = accumulate((len(one.group.completions) for one in shared), initial=0)
    return torch.tensor(
        [[start + column for column in row] for start, one in zip(starts, shared, strict=False) for row in one.columns]
    )


def _own_weights(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([example.weight for example in examples])


@dataclass
class Run:
    """One attempt's training. The same on every rank but for the share of rows."""

    learner: Learner
    rows: TrainingRows
    options: LoopOptions
    checkpoints: Checkpoints
    hooks: RunHooks
    position: Position = field(default_factory=Position)
    _tally: StepTally = field(default_factory=StepTally)

    @property
    def engine(self) -> Engine:
        return self.learner.engine

    def batches(self) -> Iterator[StepBatch]:
        """The steps that are left, from the run's own position."""
        while self.position.step < self.options.total_steps:
            self._tally = StepTally()
            yield self._batch(self.position.step)

    def _batch(self, step: int) -> StepBatch:
        indices = self.rows.sampler.batch(step)
        algorithm, examples = self.learner.algorithm, [self.rows.examples[index] for index in indices]
        reference = self.rows.reference[list(indices)]
        learned, numbers = list(map(algorithm.group, examples)), tuple(example.row for example in examples)
        shared = share_prompts(learned, numbers, algorithm.task.pack, self.options.micro_tokens)
        lengths = [algorithm.task.pack.length(one.group) for one in shared]
        shares = plan_microbatches(lengths, distributed.world_size(), self.options.micro_tokens)

        def micros() -> Iterator[MicroBatch]:
            whole = _given(examples, learned, reference[:, algorithm.learned], self._before(examples, reference))
            weights = algorithm.weights(whole).float()
            for plan in shares[distributed.rank()]:
                self._leave_if_asked()
                some = [shared[place] for place in plan.places]
                places = [place for one in some for place in one.places]
                yield MicroBatch(
                    rows=tuple(numbers[place] for place in places),
                    packed=algorithm.task.pack([one.group for one in some]),
                    columns=on_device(_columns(some), self.engine.device),
                    given=whole.rows(places).to(self.engine.device),
                    weight=on_device(weights[places] * plan.counts, self.engine.device),
                )

        return StepBatch(step, numbers, micros(), sum(lengths))

    def _before(self, examples: Sequence[Example], reference: Tensor) -> Tensor:
        """What the algorithm's prepass over a whole step says; collective. Raises Interrupted."""
        algorithm = self.learner.algorithm
        if algorithm.prepass is None:
            return torch.zeros(())
        looked_at = [example.group.of(algorithm.prepass) for example in examples]
        scores = score_sequences(
            self.engine.forward, algorithm.task.pack, looked_at, self.options.micro_tokens, self._leave_if_asked
        )
        lengths = torch.tensor([group.trained_lengths for group in looked_at])
        frozen = reference[:, algorithm.prepass]
        return algorithm.before(ScoredRows(scores, frozen, lengths, own_weights=_own_weights(examples)))

    def _leave_if_asked(self) -> None:
        """Ranks leave together, between the same two micro-batches, as if the step had never begun.

        Raises Interrupted.
        """
        try:
            leave_if_asked(self.hooks.stop)
        except Interrupted:
            set_random_state(self._tally.random)
            raise

    def loss(self, micro: MicroBatch) -> Tensor:
        """This micro-batch's part of the mean loss over the global batch; its metrics are remembered for the report."""
        packed = micro.packed.to(self.engine.device)
        sums = packed.sum_per_sequence(self.engine.forward(packed))
        found = self.learner.algorithm.loss(replace(micro.given, scores=sums[micro.columns]))
        self._tally.add(micro, found)
        return found.loss @ micro.weight

    def finish(self, batch: StepBatch) -> None:
        """The optimizer's step, and what the world hears of it. Raises UserError where too many were not finite."""
        rate = self.options.learning_rate(batch.step)
        norm = self.engine.step(rate)
        metrics = self._tally.totals()
        self.position = self.position.after(batch.tokens)
        rows = guard.rows_to_blame(self._tally.losses, batch.rows) if guard.was_skipped(norm) else ()
        skips = guard.count(self.position.skips, self.position.step, (norm,), rate, rows)
        self.position = replace(self.position, skips=skips)
        if distributed.rank() == 0:
            metrics["skipped_steps"] = float(self.position.skips.skipped)
            seconds = time.monotonic() - self._tally.began
            step, total = self.position.step, self.options.total_steps
            self.hooks.observer.stepped(StepReport(step, total, metrics, rate, norm, batch.tokens, seconds))

    def after_step(self) -> None:
        """Saves and evaluates where it is time to. The last step is saved; its evaluation comes after the export."""
        step, last = self.position.step, self.position.step == self.options.total_steps
        self.checkpoints.poll()
        if step % self.options.checkpoint_every == 0 or last:
            self.save()
        if step % self.options.evaluate_every == 0 and not last:
            self.hooks.evaluate(step)

    def save(self) -> None:
        """Saves the position that was reached, in the background; nothing to do where that is saved. Collective.

        What was saved before is sealed first, so that a rank holds one snapshot at most.
        """
        with pause(self.checkpoints, self.hooks.observer):
            self.settle()
            self.checkpoints.save(self.engine, self.position, self.hooks.observer.saved)

    def settle(self) -> None:
        """Waits until what was saved is sealed. Raises what kept it from being so."""
        self.checkpoints.settle()

    def close(self) -> None:
        """Waits until what is still on its way is sealed, or is not: the run has ended by another error."""
        self.checkpoints.close()
