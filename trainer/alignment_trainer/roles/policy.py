"""The role `policy`: claims a fencing term, takes up where the lineage left off, trains, exports."""

from __future__ import annotations

import logging
from typing import Literal

import torch

from alignment_api.contract.context import Failure, Outcome
from alignment_api.contract.status import EvaluationReport
from alignment_api.derived.reward_stage import training_field
from alignment_trainer.checkpoint.attempt import claim_attempt, find_start, let_go, make_checkpoints
from alignment_trainer.checkpoint.export import export_model
from alignment_trainer.checkpoint.output import output_at
from alignment_trainer.checkpoint.ownership import check_folders
from alignment_trainer.data.reference import read_reference
from alignment_trainer.loop.build import Trainee, load_trainee, make_run, make_sampler
from alignment_trainer.loop.offline import Interrupted, Run, RunHooks, TrainingRows
from alignment_trainer.loop.offline_evaluation import HeldOut, PolicyEvaluation, not_above_chance, write_report
from alignment_trainer.loop.own_reference import TrainingInputs, fill_reference, read_inputs
from alignment_trainer.loop.reporting import Reporter, checkpoint_status
from alignment_trainer.loop.train import train
from alignment_trainer.process import distributed
from alignment_trainer.process.instance import Instance

log = logging.getLogger(__name__)


def run(instance: Instance) -> Outcome:
    """One attempt; the same on every rank of the gang."""
    device = distributed.local_device(instance.context.gpus)
    with distributed.process_group(device):
        instance.board.update(state="reading prepared data", ready=True)
        check_folders(instance.context)
        try:
            return _attempt(instance, read_inputs(instance, device))
        except Interrupted:
            return Outcome(result="interrupted")  # asked to go before there was anything to save


def _attempt(instance: Instance, inputs: TrainingInputs) -> Outcome:
    """Raises Interrupted where it was asked to go before the first step or after the last."""
    untouched = fill_reference(instance, inputs)
    claim = claim_attempt(instance)
    start = find_start(instance, claim)
    instance.board.update(state="loading the model")
    policy = (
        untouched if untouched and start is None else load_trainee(instance.spec, inputs.origin, start, inputs.device)
    )
    let_go(instance, start)
    reporter = Reporter(instance)
    evaluation = PolicyEvaluation(instance, policy, HeldOut.of(instance.spec, inputs.prepared), reporter)
    try:
        evaluation.keep_before()
        hooks = RunHooks(reporter, evaluation.report, instance.stop)
        loop = make_run(instance.spec, policy, _rows(instance, inputs), make_checkpoints(instance, claim), hooks)
        return _train(instance, policy, loop) or _end(instance, evaluation, loop)
    finally:
        reporter.close()


def _rows(instance: Instance, inputs: TrainingInputs) -> TrainingRows:
    spec, prepared = instance.spec, inputs.prepared
    reference = read_reference(prepared, spec.training, "train", inputs.algorithm.needs_reference)
    return TrainingRows(
        prepared.train, make_sampler(spec, len(prepared.train), prepared.train.groups), torch.from_numpy(reference)
    )


def _train(instance: Instance, policy: Trainee, loop: Run) -> Outcome | None:
    """Trains and exports; the outcome where it was interrupted."""
    instance.board.update(state="training")
    try:
        train(loop)
    except Interrupted:
        return _outcome("interrupted", loop)
    instance.board.update(state="exporting the model")
    check_folders(instance.context)  # days may have passed
    export_model(policy.model, policy.engine, output_at(instance.output), instance.spec.training.precision)
    return None


def _end(instance: Instance, evaluation: PolicyEvaluation, loop: Run) -> Outcome:
    """Stage `reward` has no evaluator: is the reward model above chance? Collective. Raises Interrupted."""
    if not instance.makes_reward:
        return _outcome("succeeded", loop)
    instance.board.update(state="scoring held-out rows")
    report = evaluation.before_and_after()
    if distributed.rank() == 0:
        write_report(output_at(instance.output), report)
    log.info("evaluated", extra=report.model_dump(mode="json"))
    failure = not_above_chance(report, training_field(instance.job.spec))
    return _outcome("failed" if failure else "succeeded", loop, report, failure)


def _outcome(
    result: Literal["succeeded", "interrupted", "failed"],
    loop: Run,
    evaluation: EvaluationReport | None = None,
    failure: Failure | None = None,
) -> Outcome:
    newest = loop.checkpoints.newest
    return Outcome(
        result=result,
        failure=failure,
        step=loop.position.step,
        checkpoint=checkpoint_status(newest) if newest else None,
        evaluation=evaluation,
    )
