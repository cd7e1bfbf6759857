"""The role `evaluator`: the exported model on the held-out rows."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from alignment_api.contract.context import Outcome
from alignment_api.contract.status import EvaluationReport, Progress
from alignment_api.derived.micro_batch import tokens_of
from alignment_trainer.algorithms.base import Float32
from alignment_trainer.checkpoint.output import output_at
from alignment_trainer.checkpoint.ownership import check_folders
from alignment_trainer.data.microbatches import cut_by_tokens
from alignment_trainer.data.prepared import open_prepared
from alignment_trainer.data.storage import storage_of
from alignment_trainer.loop.offline_evaluation import HeldOut, write_report
from alignment_trainer.loop.online_evaluator import evaluate_online
from alignment_trainer.model.copies import copies_of
from alignment_trainer.model.frozen_model import LocalScorer, sum_completions
from alignment_trainer.process.instance import Instance

log = logging.getLogger(__name__)


def run(instance: Instance) -> Outcome:
    """Scores the model as it came and the exported one, and writes evaluation.json beside that."""
    evaluate = evaluate_offline if instance.spec.algorithm.online is None else evaluate_online
    output = output_at(instance.output)
    with instance.metrics.phase("evaluate"), output.model() as exported:
        report = evaluate(instance, exported)
    if report is None:
        return Outcome(result="interrupted")
    check_folders(instance.context)
    write_report(output, report)
    instance.board.update(state="evaluated", metrics={f"heldout_{name}": i.value for name, i in report.after.items()})
    log.info("evaluated", extra=report.model_dump(mode="json"))
    return Outcome(result="succeeded", evaluation=report)


def evaluate_offline(instance: Instance, exported: Path) -> EvaluationReport | None:
    """By the exported model's scores of the held-out rows; None where this process was asked to go."""
    storage = storage_of(instance)
    held_out = HeldOut.of(instance.spec, open_prepared(storage))
    before = held_out.before(storage)
    instance.board.update(state="loading the exported model", ready=True)
    task = held_out.algorithm.task
    scorer = LocalScorer(task, exported, instance.spec, copies_of(instance, task, [exported]))
    try:
        scores = _score(instance, scorer, held_out)
    finally:
        scorer.close()
    return None if scores is None else EvaluationReport(before=before, after=held_out.figures(scores))


def _score(instance: Instance, scorer: LocalScorer, held_out: HeldOut) -> Float32 | None:
    """(rows, completions learned from); None where this process was asked to go.

    That is looked at when every device has had a turn.
    """
    instance.board.update(state="scoring held-out rows")
    rows, algorithm, scores = held_out.examples, held_out.algorithm, list[Float32]()
    at_once = tokens_of(instance.spec.training) * max(1, instance.context.gpus)
    for piece in cut_by_tokens(rows.packed_lengths().tolist(), at_once):
        if instance.stop():
            return None
        groups = [algorithm.group(rows[index]) for index in piece]
        numbers = scorer.score(groups)
        scores += [sum_completions(group, values) for group, values in zip(groups, numbers, strict=True)]
        instance.metrics.set("rows", len(scores))
        instance.board.update(progress=Progress(step=len(scores), total_steps=len(rows)))
    return np.stack(scores)
