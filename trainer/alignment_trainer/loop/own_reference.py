"""What an attempt of role `policy` finds, and the reference's log-probs where the policy computes them itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from alignment_trainer.algorithms import OfflineAlgorithm, make_algorithm
from alignment_trainer.data.finite import refuse_rows
from alignment_trainer.data.prepared import PreparedData, open_prepared
from alignment_trainer.data.reference import ReferenceCache, Shard, plan_shards, reference_cache
from alignment_trainer.data.sources import resolve_model
from alignment_trainer.engines.scoring import score_sequences
from alignment_trainer.loop.build import Origin, Trainee, load_trainee
from alignment_trainer.loop.offline import leave_if_asked
from alignment_trainer.process import distributed
from alignment_trainer.process.instance import Instance


@dataclass(frozen=True)
class TrainingInputs:
    """What every attempt of a job finds: the same algorithm, rows, reference and model."""

    algorithm: OfflineAlgorithm
    prepared: PreparedData
    cache: ReferenceCache
    origin: Origin
    device: torch.device


def read_inputs(instance: Instance, device: torch.device) -> TrainingInputs:
    """As `prepare` left them."""
    spec, prepared = instance.spec, open_prepared(instance.storage)
    algorithm = make_algorithm(spec.algorithm)
    folder = resolve_model(spec.model, instance.context.sources, prepared.manifest.model.revision).path
    cache = reference_cache(prepared, spec.training)
    return TrainingInputs(algorithm, prepared, cache, Origin(folder, algorithm.task), device)


def fill_reference(instance: Instance, inputs: TrainingInputs) -> Trainee | None:
    """With `placement: withPolicy`, before the first step ever: the reference's log-probs by the policy itself.

    Collective; every rank computes its share, the first writes. Returns the untouched policy where it was needed.
    Raises Interrupted; UserError for rows whose log-probs are not finite.
    """
    spec, cache = instance.spec, inputs.cache
    if not inputs.algorithm.needs_reference or spec.roles.reference.placement != "withPolicy":
        return None
    shards = plan_shards(inputs.prepared, spec.training)
    missing = distributed.from_first_rank([shard for shard in shards if not cache.holds(shard)])
    if not missing and cache.is_complete(shards):
        return None
    instance.board.update(state="computing the reference")
    policy = load_trainee(spec, inputs.origin, None, inputs.device)
    with instance.metrics.phase("reference"):
        for shard in missing:
            _compute_shard(instance, inputs, policy, shard)
    if distributed.rank() == 0:
        cache.complete(shards)
    distributed.barrier()
    return policy


def _compute_shard(instance: Instance, inputs: TrainingInputs, policy: Trainee, shard: Shard) -> None:
    rows, algorithm = inputs.prepared.split(shard.split), inputs.algorithm
    groups = [[algorithm.group(rows[index]) for index in batch] for batch in shard.batches]
    logprobs = score_sequences(
        policy.engine.forward,
        algorithm.task.pack,
        groups,
        instance.spec.training.micro_batch_tokens,
        lambda: leave_if_asked(instance.stop),
    ).numpy()
    refuse_rows("the reference's log-probs", [rows[index].row for index in shard.indices], logprobs)
    if distributed.rank() == 0:
        inputs.cache.write(shard, logprobs)
