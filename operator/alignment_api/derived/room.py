"""The memory that a stage's micro-batches must fit in, as `prepare` can know it before their processes start."""

from __future__ import annotations

from collections.abc import Iterator

from alignment_api.contract.platform import Gpu, Pool
from alignment_api.contract.quantity import quantity_value
from alignment_api.contract.roles import ROLES, Stage
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.micro_batch import Limit
from alignment_api.derived.role_memory import GIB
from alignment_api.derived.sizing import HEADROOM, bytes_here, bytes_on_each_gpu, pod_bytes, size_of
from alignment_api.derived.stages import stages_of


def limits_of(spec: AlignmentJobSpec, model: Decoder, gpu: Gpu | None, free: int | None) -> tuple[Limit, ...]:
    """Of the stage that trains. gpu: that trainees have. free: bytes that all processes share; None for pods.

    None at all where pods on CPUs are sized by what they need.
    """
    stage = next(stage for stage in stages_of(spec) if stage.name == "train")
    trainees = [role for role in stage.roles if ROLES[role].trainable]
    if gpu is not None:
        return tuple(_of_gpu(spec, role, model, gpu) for role in trainees)
    if free is not None:
        return (_of_machine(stage, model, free),)
    return tuple(_of_pods(spec, trainees, model))


def _of_gpu(spec: AlignmentJobSpec, role: str, model: Decoder, gpu: Gpu) -> Limit:
    count = size_of(spec, role, Pool(gpu=gpu), model).gpus
    room = gpu.memory_gib * GIB / HEADROOM["gpu"]
    return Limit(room, f"of each {gpu.product}", lambda spec: bytes_on_each_gpu(spec, role, model, count))


def _of_machine(stage: Stage, model: Decoder, free: int) -> Limit:
    roles = [role for role in stage.roles if ROLES[role].accelerated]

    def need(spec: AlignmentJobSpec) -> float:
        return sum(bytes_here(spec, roles, model).values())

    def bare(spec: AlignmentJobSpec) -> float:
        return sum(bytes_here(spec, roles, model, bare=True).values())

    return Limit(free, "free on this machine", need, bare)


def _of_pods(spec: AlignmentJobSpec, trainees: list[str], model: Decoder) -> Iterator[Limit]:
    for role in trainees:
        memory = getattr(spec.roles, role).memory
        if memory is not None:
            room = float(quantity_value(memory)) / HEADROOM["cpu"]
            yield Limit(room, f"in spec.roles.{role}.memory", lambda spec, role=role: pod_bytes(spec, role, model))  # type: ignore[misc]
