"""What a role's process holds, from the spec: the one place that knows which models a role has and how it has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from alignment_api.contract.quantity import quantity_value
from alignment_api.contract.roles import ROLES
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import Precision
from alignment_api.derived.adapters import trained_parameters
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.memory import Holder, Memory, Work, frozen, sampled, trained
from alignment_api.derived.micro_batch import (
    ENOUGH_TOKENS,
    assumed,
    longest_row,
    most_tokens,
    recomputed_of,
    tokens_of,
)
from alignment_api.derived.sharding import default_sharding

GIB = 1024**3
WEIGHT_VERSIONS = 2
"""Versions of the weights on their way: the one in use and the next."""
KV_CACHE_GIB = 1
"""Keys and values of a rollout server on CPUs, where the spec does not say; on GPUs they take what weights leave."""
_SERVED_BYTES = {"auto": 4, "bf16": 2, "fp32": 4}
"""Of a weight in vLLM and on its way there; as long as nobody knows the precision (`auto`), the larger."""


@dataclass(frozen=True)
class Place:
    """Where the processes of a role are. ranks: over all of its pods, where they share one state."""

    gpu: bool
    ranks: int = 1


def replicas_of(spec: AlignmentJobSpec, role: str) -> int:
    """Pods of a role while its stage runs; a role without the field has one."""
    return int(getattr(getattr(spec.roles, role), "replicas", 1))


def memory_of(spec: AlignmentJobSpec, role: str, model: Decoder, place: Place) -> Memory:
    """Of one rank, or of the fullest of a server's GPUs, which hold one copy together. The larger, where the precision
    is open.

    Where the micro-batch is open, too: of one that leaves the room of a GPU to the state, on CPUs of the largest.
    """
    spec, written = assumed(spec, ENOUGH_TOKENS if place.gpu else most_tokens(spec)), spec.training.precision
    precisions: tuple[Precision, ...] = ("bf16", "fp32") if written == "auto" else (written,)
    found = [_in_precision(spec, role, model, place, precision) for precision in precisions]
    return max(found, key=lambda memory: memory.total)


def scratch_bytes(spec: AlignmentJobSpec, role: str, parameters: int) -> int:
    """Bytes of the weights on their way that one pod keeps in memory; 0 where none are delivered."""
    if spec.algorithm.online is None or not ROLES[role].delivers:
        return 0
    return WEIGHT_VERSIONS * _SERVED_BYTES[spec.training.precision] * parameters


def cache_bytes(spec: AlignmentJobSpec, role: str, gpu: bool) -> int:
    """Keys and values of one rollout server: on GPUs, where the spec does not say, what the weights leave."""
    if not ROLES[role].samples:
        return 0
    asked = spec.roles.rollout.kv_cache_memory
    if asked is not None:
        return int(quantity_value(asked))
    return 0 if gpu else KV_CACHE_GIB * GIB


def _in_precision(spec: AlignmentJobSpec, role: str, model: Decoder, place: Place, precision: Precision) -> Memory:
    if ROLES[role].samples:
        return sampled(model, precision)
    if not ROLES[role].trainable:
        together = place.ranks // max(1, replicas_of(spec, role)) if place.gpu else 1
        holder, work = Holder(precision, place.gpu, ranks=max(1, together)), _work(spec, model, 1)
        return Memory().plus(*(frozen(each, holder, work) for each in _models(spec, role, model)))
    sharding = spec.training.sharding or default_sharding(place.ranks)
    holder = Holder(precision, place.gpu, sharding, place.ranks)
    work = _work(spec, model, place.ranks)
    own, *others = (trained(each, _adapted(holder, spec, each), work) for each in _models(spec, role, model))
    return own.in_turn(*others) if others else own


def _adapted(holder: Holder, spec: AlignmentJobSpec, model: Decoder) -> Holder:
    """With the adapters that the job trains, if any."""
    if spec.training.lora is None:
        return holder
    return replace(holder, adapters=trained_parameters(spec.training, model))


def _models(spec: AlignmentJobSpec, role: str, model: Decoder) -> Iterator[Decoder]:
    """All in one process: a reward server has every reward model, an actor may have its critic."""
    values = replace(model, has_head=False)
    if role == "reward":
        yield from (values for reward in spec.algorithm.rewards if reward.function is None)
        return
    yield values if role == "critic" or spec.algorithm.name == "reward" else model
    if role == "actor" and spec.algorithm.ppo and spec.roles.critic.placement == "withActor":
        yield values


def _work(spec: AlignmentJobSpec, model: Decoder, ranks: int) -> Work:
    """A micro-batch: no larger than what a rank has of a step."""
    training, online = spec.training, spec.algorithm.online
    of_step = training.batch_size * longest_row(spec)
    return Work(
        tokens=min(tokens_of(training), -(-of_step // ranks)),
        longest=training.max_length,
        branches=online.samples if online else 2,
        recompute=recomputed_of(training),
    )
