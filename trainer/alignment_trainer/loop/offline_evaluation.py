"""Held-out figures of an offline algorithm: while it trains, before it and after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import TypeAdapter

from alignment_api.contract.context import Failure
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import Evaluated, EvaluationReport
from alignment_trainer.algorithms import OfflineAlgorithm, ScoredRows, make_algorithm
from alignment_trainer.algorithms.base import Float32
from alignment_trainer.checkpoint.output import Output
from alignment_trainer.data.finite import refuse_rows
from alignment_trainer.data.prepared import Examples, PreparedData
from alignment_trainer.data.reference import read_reference
from alignment_trainer.data.storage import Storage, storage_of
from alignment_trainer.loop.build import Trainee, score_rows
from alignment_trainer.loop.offline import leave_if_asked
from alignment_trainer.loop.reporting import Reporter
from alignment_trainer.process import distributed
from alignment_trainer.process.instance import Instance

BEFORE_FILE = "before.json"
_FIGURES: TypeAdapter[Evaluated] = TypeAdapter(Evaluated)


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows of a job. reference: (rows, completions learned from), zeros where none is needed."""

    algorithm: OfflineAlgorithm
    examples: Examples
    reference: Float32

    @classmethod
    def of(cls, spec: AlignmentJobSpec, prepared: PreparedData) -> HeldOut:
        algorithm = make_algorithm(spec.algorithm)
        reference = read_reference(prepared, spec.training, "evaluation", algorithm.needs_reference)
        return cls(algorithm, prepared.evaluation, reference[:, algorithm.learned])

    def figures(self, scores: Float32) -> Evaluated:
        """Of a model by its scores, (rows, completions learned from)."""
        lengths = torch.tensor([self.algorithm.group(example).trained_lengths for example in self.examples])
        labels = torch.tensor([example.label for example in self.examples])
        prompts = [example.asked for example in self.examples]
        own, frozen = (torch.from_numpy(values).double() for values in (scores, self.reference))
        return self.algorithm.evaluated(ScoredRows(own, frozen, lengths, labels), prompts)

    def before(self, storage: Storage) -> Evaluated:
        """Of the model as it came: the reference, or what the policy left in storage before its first step."""
        if self.algorithm.needs_reference:
            return self.figures(self.reference)
        return _FIGURES.validate_json(storage.get(BEFORE_FILE))


@dataclass(frozen=True)
class PolicyEvaluation:
    """The held-out rows by the policy as it is at that moment.

    Collective, and left between two micro-batches where this process was asked to go: any of it raises Interrupted.
    """

    instance: Instance
    policy: Trainee
    held_out: HeldOut
    reporter: Reporter

    def keep_before(self) -> None:
        """Without a reference only the policy itself can say what it was like before its first step.

        Of a head that is new there is nothing to say: its scores are random, and cost as much as all others.
        """
        if distributed.from_first_rank(lacks_before(storage_of(self.instance), self.held_out)):
            self.instance.board.update(state="evaluating the untouched model")
            before = {} if self.policy.model.head_is_new else self.figures()
            if distributed.rank() == 0:
                write_before(storage_of(self.instance), before)

    def report(self, step: int) -> None:
        """After so many steps."""
        figures = self.figures()
        if distributed.rank() == 0:
            self.reporter.evaluated(step, figures)

    def before_and_after(self) -> EvaluationReport:
        """Of the model as it came and of the policy now."""
        return EvaluationReport(before=self.held_out.before(storage_of(self.instance)), after=self.figures())

    def figures(self) -> Evaluated:
        """Now."""
        spec, stop, examples = self.instance.spec, self.instance.stop, self.held_out.examples
        with self.instance.metrics.phase("evaluate"):
            scores = score_rows(spec, self.policy.engine, examples, lambda: leave_if_asked(stop)).numpy()
        refuse_rows("the policy's scores", [example.row for example in examples], scores)
        return self.held_out.figures(scores)


def lacks_before(storage: Storage, held_out: HeldOut) -> bool:
    """Whether the figures of the untouched model are known to nobody yet."""
    return not held_out.algorithm.needs_reference and not storage.holds(BEFORE_FILE)


def write_before(storage: Storage, figures: Evaluated) -> None:
    """Keeps the figures of the untouched model for the report."""
    storage.put(BEFORE_FILE, [_FIGURES.dump_json(figures, indent=1)])


def write_report(output: Output, report: EvaluationReport) -> None:
    """evaluation.json, beside the model."""
    output.put_report(report.model_dump_json(indent=1))


def not_above_chance(report: EvaluationReport, field: str) -> Failure | None:
    """Why nothing may be trained against a reward model with these figures; None where it may.

    field: where the manifest says how it is trained.
    """
    accuracy = report.after["accuracy"]
    if accuracy.low > 0.5:
        return None
    message = (
        f"{field}: the reward model prefers the chosen completion of {accuracy.value:.1%} of {accuracy.count} held-out "
        f"pairs (95% interval {accuracy.low:.1%} to {accuracy.high:.1%}), which is not above chance; nothing is "
        "trained against it. Give it more pairs, or pairs whose labels agree with each other; or a higher "
        "learningRate, or another model to start from"
    )
    return Failure(reason="RewardModelNotAboveChance", message=message, retryable=False)
