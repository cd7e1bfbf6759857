"""What an attempt of role `policy` finds, and the reference's log-probs where the policy computes them itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from alignment_api.derived.micro_batch import tokens_of
from alignment_trainer.algorithms import OfflineAlgorithm, make_algorithm
from alignment_trainer.data.finite import refuse_rows
from alignment_trainer.data.microbatches import cut_by_tokens
from alignment_trainer.data.prepared import PreparedData, open_prepared
from alignment_trainer.data.reference import ReferenceCache, ReferenceRows, ShardWriter, needed_rows, reference_cache
from alignment_trainer.data.sources import resolve_model
from alignment_trainer.data.storage import storage_of
from alignment_trainer.engines.scoring import score_sequences
from alignment_trainer.loop.build import Origin, Trainee, load_trainee
from alignment_trainer.loop.offline import leave_if_asked
from alignment_trainer.model.inspect import Named, model_fingerprint
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
    spec, prepared = instance.spec, open_prepared(storage_of(instance))
    algorithm = make_algorithm(spec.algorithm)
    folder = resolve_model(spec.model, instance.context.sources, prepared.manifest.model.revision).path
    if spec.training.lora is not None:
        named, pinned = Named(spec.model, instance.model_field), prepared.manifest.model
        distributed.ask_first_rank(lambda: _check_base(named, folder, pinned.fingerprint))
    cache = reference_cache(prepared)
    return TrainingInputs(algorithm, prepared, cache, Origin(folder, algorithm.task), device)


def _check_base(named: Named, folder: Path, pinned: str) -> None:
    """A checkpoint of adapters says nothing of their base. Raises UserError where it is not the one that was pinned."""
    if model_fingerprint(folder) != pinned:
        raise named.mistake(
            "its files are not those that `prepare` found, and adapters are of no use beside another base; put them "
            "back, or start a job of its own",
            "OtherBase",
        )


def fill_reference(instance: Instance, inputs: TrainingInputs) -> Trainee | None:
    """With `placement: withPolicy`, before the first step ever: the reference's log-probs by the policy itself.

    Collective; every rank computes its share, the first writes. Returns the untouched policy where it was needed.
    Raises Interrupted; UserError for rows whose log-probs are not finite.
    """
    if not inputs.algorithm.needs_reference or instance.spec.roles.reference.placement != "withPolicy":
        return None
    missing = _missing_rows(instance, inputs)
    if not len(missing):
        return None
    instance.board.update(state="computing the reference")
    policy = load_trainee(instance.spec, inputs.origin, None, inputs.device)
    with instance.metrics.phase("reference"):
        _compute(instance, inputs, policy, missing)
    return policy


def _missing_rows(instance: Instance, inputs: TrainingInputs) -> ReferenceRows:
    """Rows without log-probs, as the first rank finds them. Collective."""
    needed, missing = needed_rows(inputs.prepared, instance.spec.training), np.empty(0, np.int64)
    if distributed.rank() == 0:
        inputs.cache.remove_damaged()
        missing = inputs.cache.missing(needed)
    return needed.take(distributed.from_first_rank(missing))


def _compute(instance: Instance, inputs: TrainingInputs, policy: Trainee, rows: ReferenceRows) -> None:
    """A micro-batch for each rank at a time. What was computed before an interruption is kept; every rank finds it."""
    micro_tokens, writer = tokens_of(instance.spec.training), ShardWriter(inputs.cache)
    try:
        for piece in cut_by_tokens(rows.lengths.tolist(), micro_tokens * distributed.world_size()):
            logprobs = score_sequences(
                policy.engine.forward,
                inputs.algorithm.task.pack,
                [rows.group(index) for index in piece],
                micro_tokens,
                lambda: leave_if_asked(instance.stop),
            ).numpy()
            refuse_rows("the reference's log-probs", [rows.number(index) for index in piece], logprobs)
            if distributed.rank() == 0:
                writer.add(rows.keys[piece.start : piece.stop], logprobs)
    finally:
        writer.flush()
    distributed.barrier()
