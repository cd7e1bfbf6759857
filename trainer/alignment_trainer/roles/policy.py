"""The role `policy`: claims a fencing term, takes up where the lineage left off, trains, exports."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from alignment_api.context import Failure, Outcome
from alignment_api.reward_stage import training_field
from alignment_api.status import Evaluated, EvaluationReport
from alignment_trainer.algorithms import OfflineAlgorithm, make_algorithm
from alignment_trainer.checkpoint.attempt import claim_attempt, make_checkpoints, start_folder
from alignment_trainer.checkpoint.claims import check_owner
from alignment_trainer.checkpoint.export import export_model
from alignment_trainer.data.microbatches import cut_by_tokens
from alignment_trainer.data.prepared import PreparedData, open_prepared
from alignment_trainer.data.reference import (
    ReferenceCache,
    ReferenceRows,
    ShardWriter,
    needed_rows,
    read_reference,
    reference_cache,
)
from alignment_trainer.data.sources import resolve_model
from alignment_trainer.engines.scoring import score_sequences
from alignment_trainer.loop.build import Policy, RunServices, make_policy, make_run, score_rows
from alignment_trainer.loop.offline import Data, Interrupted, Run
from alignment_trainer.loop.offline_evaluation import (
    HeldOut,
    lacks_before,
    not_above_chance,
    write_before,
    write_report,
)
from alignment_trainer.loop.reporting import Reporter, checkpoint_status
from alignment_trainer.loop.train import train
from alignment_trainer.process import distributed
from alignment_trainer.process.instance import Instance

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PolicyInputs:
    """What every attempt of a job finds: the same algorithm, rows, reference and model."""

    algorithm: OfflineAlgorithm
    prepared: PreparedData
    cache: ReferenceCache
    model: Path
    device: torch.device


def run(instance: Instance) -> Outcome:
    """One attempt; the same on every rank of the gang."""
    device = distributed.local_device(instance.context.gpus)
    with distributed.process_group(device):
        instance.board.update(state="reading prepared data", ready=True)
        inputs = _gather_inputs(instance, device)
        try:
            first = _fill_cache(instance, inputs)
        except Interrupted:
            return Outcome(result="interrupted")
        return _train(instance, inputs, first)


def _gather_inputs(instance: Instance, device: torch.device) -> PolicyInputs:
    check_owner(instance.storage, instance.context.uid)
    prepared = open_prepared(instance.storage)
    pinned = prepared.manifest.model.revision
    folder = resolve_model(instance.spec.model, instance.context.sources, pinned).path
    cache = reference_cache(prepared)
    return PolicyInputs(make_algorithm(instance.spec.algorithm), prepared, cache, folder, device)


def _fill_cache(instance: Instance, inputs: PolicyInputs) -> Policy | None:
    """With `placement: withPolicy`, before the first step ever: the reference's log-probs by the policy itself.

    Collective; every rank computes its share, the first writes. Returns the untouched policy where it was needed.
    Raises Interrupted.
    """
    if not inputs.algorithm.needs_reference or instance.spec.roles.reference.placement != "withPolicy":
        return None
    missing = _missing_rows(instance, inputs)
    if not len(missing):
        return None
    instance.board.update(state="computing the reference")
    policy = _policy(instance, inputs, None)
    with instance.metrics.phase("reference"):
        _compute_reference(instance, inputs, policy, missing)
    return policy


def _missing_rows(instance: Instance, inputs: PolicyInputs) -> ReferenceRows:
    """Rows without log-probs, as the first rank finds them. Collective."""
    needed, missing = needed_rows(inputs.prepared, instance.spec.training), np.empty(0, np.int64)
    if distributed.rank() == 0:
        inputs.cache.remove_damaged()
        missing = inputs.cache.missing(needed)
    return needed.take(distributed.from_first_rank(missing))


def _compute_reference(instance: Instance, inputs: PolicyInputs, policy: Policy, rows: ReferenceRows) -> None:
    """A micro-batch for each rank at a time. What was computed before an interruption is kept; every rank finds it."""
    micro_tokens, writer = instance.spec.training.micro_batch_tokens, ShardWriter(inputs.cache)
    try:
        for piece in cut_by_tokens(rows.lengths.tolist(), micro_tokens * distributed.world_size()):
            if distributed.any_rank(instance.stop()):
                raise Interrupted
            groups = [rows.group(index) for index in piece]
            logprobs = score_sequences(policy.engine.forward, inputs.algorithm.task.pack, groups, micro_tokens)
            if distributed.rank() == 0:
                writer.add(rows.keys[piece.start : piece.stop], logprobs.numpy())
    finally:
        writer.flush()
    distributed.barrier()


def _policy(instance: Instance, inputs: PolicyInputs, start: Path | None) -> Policy:
    return make_policy(instance.spec, inputs.model, start, inputs.device, inputs.algorithm.task)


def _train(instance: Instance, inputs: PolicyInputs, untouched: Policy | None) -> Outcome:
    spec = instance.spec
    claim = claim_attempt(instance)
    start = start_folder(instance, claim)
    instance.board.update(state="loading the model")
    policy = untouched if untouched and start is None else _policy(instance, inputs, start)
    checkpoints = make_checkpoints(instance, claim)
    reporter = Reporter(instance)
    held_out = HeldOut.of(spec, inputs.prepared)
    figures = _evaluation(instance, policy, held_out)
    _keep_before(instance, held_out, figures)
    services = RunServices(checkpoints, reporter, lambda step: _report(reporter, step, figures()), instance.stop)
    loop = make_run(spec, policy, _data(instance, inputs), services)
    instance.board.update(state="training")
    try:
        train(loop)
        instance.board.update(state="exporting the model")
        export_model(policy.model, policy.engine, instance.exported_model, spec.training.precision)
    except Interrupted:
        return _outcome("interrupted", loop)
    finally:
        reporter.close()
    return _judge(instance, held_out, figures, loop) if instance.makes_reward else _outcome("succeeded", loop)


def _data(instance: Instance, inputs: PolicyInputs) -> Data:
    prepared, needed = inputs.prepared, inputs.algorithm.needs_reference
    return Data(prepared.train, torch.from_numpy(read_reference(prepared, instance.spec.training, "train", needed)))


def _evaluation(instance: Instance, policy: Policy, held_out: HeldOut) -> Callable[[], Evaluated]:
    """Scores the held-out rows by the policy as it is at that moment; collective."""

    def figures() -> Evaluated:
        with instance.metrics.phase("evaluate"):
            return held_out.figures(score_rows(instance.spec, policy.engine, held_out.examples).numpy())

    return figures


def _keep_before(instance: Instance, held_out: HeldOut, figures: Callable[[], Evaluated]) -> None:
    """Without a reference only the untouched policy itself can say what it was like; collective."""
    if distributed.from_first_rank(lacks_before(instance.storage, held_out)):
        instance.board.update(state="evaluating the untouched model")
        before = figures()
        if distributed.rank() == 0:
            write_before(instance.storage, before)


def _report(reporter: Reporter, step: int, figures: Evaluated) -> None:
    if distributed.rank() == 0:
        reporter.evaluated(step, figures)


def _judge(instance: Instance, held_out: HeldOut, figures: Callable[[], Evaluated], loop: Run) -> Outcome:
    """The end of stage `reward`, which has no evaluator: is the reward model above chance? Collective."""
    instance.board.update(state="scoring held-out rows")
    after = figures()
    report = EvaluationReport(before=held_out.before(instance.storage), after=after)
    if distributed.rank() == 0:
        write_report(instance.output, report)
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
