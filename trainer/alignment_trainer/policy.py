"""The role `policy`: claims an epoch, takes up where the lineage left off, trains, exports."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from alignment_api.context import Outcome
from alignment_trainer import distributed
from alignment_trainer.assembly import Policy, Surroundings, make_policy, make_run, score_batches
from alignment_trainer.commits import Commits
from alignment_trainer.data.packing import pair_group
from alignment_trainer.data.reference import (
    Float32,
    ReferenceCache,
    Shard,
    evaluation_batches,
    plan_shards,
    reference_cache,
)
from alignment_trainer.data.store import PreparedData, open_prepared
from alignment_trainer.evaluate import MODEL_FOLDER, heldout_evaluator
from alignment_trainer.export import export_model
from alignment_trainer.instance import Instance
from alignment_trainer.reporting import Reporter, checkpoint_status
from alignment_trainer.run import Data, Interrupted, Run
from alignment_trainer.scoring import sequence_logprobs
from alignment_trainer.sources import resolve_model
from alignment_trainer.storage import (
    Claim,
    check_owner,
    checkpoints_folder,
    claim_epoch,
    resume_from,
    start_of,
    tidy_commits,
)
from alignment_trainer.train import train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Materials:
    """What every attempt of a job finds: the same rows, the same reference, the same model."""

    prepared: PreparedData
    cache: ReferenceCache
    model: Path
    device: torch.device


def run(instance: Instance) -> Outcome:
    """One attempt; the same on every rank of the gang."""
    device = distributed.local_device(instance.context.gpus)
    with distributed.process_group(device):
        instance.board.update(state="reading prepared data", ready=True)
        materials = _gather_materials(instance, device)
        try:
            first = _fill_cache(instance, materials)
        except Interrupted:
            return Outcome(result="interrupted")
        return _train(instance, materials, first)


def _gather_materials(instance: Instance, device: torch.device) -> Materials:
    check_owner(instance.storage, instance.context.uid)
    prepared = open_prepared(instance.storage)
    pinned = prepared.manifest.model.revision
    folder = resolve_model(instance.spec.model, instance.context.sources, pinned).path
    return Materials(prepared, reference_cache(prepared, instance.spec.training), folder, device)


def _fill_cache(instance: Instance, materials: Materials) -> Policy | None:
    """With `placement: withPolicy`, before the first step ever: the reference's log-probs by the policy itself.

    Collective; every rank computes its share, the first writes. Returns the untouched policy where it was needed.
    Raises Interrupted.
    """
    spec, cache = instance.spec, materials.cache
    shards = plan_shards(materials.prepared, spec.training)
    missing = distributed.from_first_rank([shard for shard in shards if not cache.holds(shard)])
    if spec.roles.reference.placement != "withPolicy" or (not missing and cache.is_complete(shards)):
        return None
    instance.board.update(state="computing the reference")
    policy = make_policy(spec, materials.model, None, materials.device)
    with instance.metrics.phase("reference"):
        for shard in missing:
            _compute_shard(instance, materials, policy, shard)
    if distributed.rank() == 0:
        cache.commit(shards)
    distributed.barrier()
    return policy


def _compute_shard(instance: Instance, materials: Materials, policy: Policy, shard: Shard) -> None:
    if distributed.any_rank(instance.stop()):
        raise Interrupted
    rows = materials.prepared.split(shard.split)
    groups = [[pair_group(rows[index]) for index in batch] for batch in shard.batches]
    logprobs = sequence_logprobs(policy.engine.forward, groups, instance.spec.training.micro_batch_tokens)
    if distributed.rank() == 0:
        materials.cache.write(shard, logprobs.numpy())


def _train(instance: Instance, materials: Materials, untouched: Policy | None) -> Outcome:
    spec, storage = instance.spec, instance.storage
    claim = _claim(instance)
    start = _start(instance, claim)
    instance.board.update(state="loading the model")
    policy = untouched if untouched and start is None else make_policy(spec, materials.model, start, materials.device)
    commits = Commits(
        checkpoints_folder(storage),
        claim.epoch,
        spec.checkpoint.keep,
        tidy=lambda _folder, keep: tidy_commits(storage, claim.epoch, keep),
    )
    reporter = Reporter(instance)
    evaluate = _evaluation(instance, materials, policy, reporter)
    surroundings = Surroundings(commits, reporter, evaluate, instance.stop)
    loop = make_run(spec, policy, _data(materials), surroundings)
    instance.board.update(state="training")
    try:
        train(loop)
        instance.board.update(state="exporting the model")
        export_model(policy.model, policy.engine, instance.output / MODEL_FOLDER, spec.training.precision)
    except Interrupted:
        return _outcome("interrupted", loop)
    finally:
        reporter.close()
    return _outcome("succeeded", loop)


def _claim(instance: Instance) -> Claim:
    """Rank 0's claim, on every rank."""
    claim: Claim | None = None
    if distributed.rank() == 0:
        claim = claim_epoch(instance.storage, instance.context.uid, instance.context.life)
        log.info("claimed epoch %d", claim.epoch, extra={"start": claim.start.model_dump() if claim.start else None})
    agreed = distributed.from_first_rank(claim)
    if agreed is None:
        raise RuntimeError("rank 0 made no claim")
    return agreed


def _start(instance: Instance, claim: Claim) -> Path | None:
    """The commit to start from: the claim's, else on a job's very first attempt that of another job's storage."""
    source = instance.spec.checkpoint.resume_from
    if claim.start is not None or source is None:
        return start_of(instance.storage, claim)
    return resume_from(Path(instance.context.sources[source]), source).folder


def _data(materials: Materials) -> Data:
    train_rows = materials.prepared.train
    return Data(train_rows, torch.from_numpy(materials.cache.read("train", len(train_rows))))


def _evaluation(instance: Instance, materials: Materials, policy: Policy, reporter: Reporter) -> Callable[[int], None]:
    """Scores the held-out rows by the policy as it is at that step; collective."""
    rows = materials.prepared.evaluation
    batches = evaluation_batches(len(rows), instance.spec.training)
    reference = materials.cache.read("evaluation", len(rows))

    def score() -> Float32:
        scored: Float32 = score_batches(instance.spec, policy.engine, rows, batches).numpy()
        return scored

    figures = heldout_evaluator(rows, reference, instance.spec.algorithm, score)

    def evaluate(step: int) -> None:
        with instance.metrics.phase("evaluate"):
            found = figures()
        if distributed.rank() == 0:
            reporter.evaluated(step, found)

    return evaluate


def _outcome(result: Literal["succeeded", "interrupted"], loop: Run) -> Outcome:
    newest = loop.commits.newest
    return Outcome(
        result=result,
        step=loop.position.step,
        checkpoint=checkpoint_status(newest) if newest else None,
    )
