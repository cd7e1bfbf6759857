"""How large a role's pod is where the spec does not say, by the model of memory (`memory.py`)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

from alignment_api.contract.platform import Gpu, Pool
from alignment_api.contract.quantity import quantity_value
from alignment_api.contract.role_spec import AcceleratedRole
from alignment_api.contract.roles import ROLES
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.role_memory import GIB, Place, cache_bytes, memory_of, replicas_of, scratch_bytes

HEADROOM = {"gpu": 1.1, "cpu": 1.2}
"""Over what tensors take: what an allocator loses in fragments, and what the model of memory may be short by. A CPU's
keeps more of what it was given back."""
UNKNOWN_PARAMETERS = {"gpu": 8 * 10**9, "cpu": 10**9}
"""Parameters taken for granted until `prepare` has looked: the common size on GPUs, a small model on CPUs."""
PROCESS_GIB = {"gpu": 4.0, "cpu": 1.0}
"""Host memory of one process before any weight: Python, torch, transformers; with a GPU its driver's and pinned
buffers."""
VLLM_GIB = 3.0
"""The same of vLLM."""
SHARED_GIB, FORKED_GIB, FORKED_VLLM_GIB = 0.6, 0.4, 2.0
"""Where processes are forked from one that has imported the same, as `alignctl`'s are: of that one, of each, of vLLM
(docs/benchmarks.md)."""
MOST_GPUS = 256
"""Of one pod: as many as the spec may ask for."""
PREPARE_GIB = 4
"""Memory of `prepare`: it streams rows and files, holds the tokens of one shard, and probes a model before: its own
weights up to half a billion parameters, else a few narrow layers of it. More memory probes larger ones whole."""
PREPARE_PROCESS_GIB = Fraction(3, 2)
"""Of that, Python, torch and transformers themselves, with some to spare."""
CORES_PER_GPU = 4
"""Cores that feed one GPU."""


@dataclass(frozen=True)
class Size:
    """What one pod of a role asks for."""

    processes: int
    """Ranks in it."""
    gpus: int
    cpu: str
    """Kubernetes quantity: cores."""
    memory: str
    """Kubernetes quantity: bytes."""
    scratch_gib: int = 0
    """Part of the memory that holds weights on their way (Context.scratch), in whole GiB."""


def size_of(spec: AlignmentJobSpec, role: str, pool: Pool, model: Decoder | None) -> Size:
    """The size of one pod: what the spec says, else what the model asks for.

    model: as `prepare` found it; None before that.
    """
    wanted = getattr(spec.roles, role)
    if not ROLES[role].accelerated:
        return Size(1, 0, wanted.cpu or "1", wanted.memory or f"{PREPARE_GIB}Gi")
    known = model or Decoder.of(UNKNOWN_PARAMETERS["gpu" if pool.gpu else "cpu"])
    gpus = _gpus(spec, role, pool.gpu, known) if pool.gpu else 0
    processes = gpus or wanted.processes or 1
    cores = gpus * CORES_PER_GPU or processes
    scratch = math.ceil(scratch_bytes(spec, role, known.parameters) / GIB)
    place = Place(pool.gpu is not None, processes * replicas_of(spec, role))
    bare = _host_bytes(spec, role, known, place, HEADROOM["cpu"])
    memory = f"{math.ceil(bare / GIB) + scratch}Gi"
    return Size(processes, gpus, wanted.cpu or str(cores), wanted.memory or memory, scratch)


def probe_bytes(spec: AlignmentJobSpec) -> int:
    """Bytes of weights that `prepare` may load to probe a model: what its process leaves, at least a quarter."""
    memory = int(quantity_value(spec.roles.prepare.memory or f"{PREPARE_GIB}Gi"))
    return max(memory // 4, memory - int(PREPARE_PROCESS_GIB * GIB))


def pod_bytes(spec: AlignmentJobSpec, role: str, model: Decoder) -> float:
    """Bytes of one pod of a role on CPUs, without head-room."""
    ranks = (getattr(spec.roles, role).processes or 1) * replicas_of(spec, role)
    return _host_bytes(spec, role, model, Place(False, ranks)) + scratch_bytes(spec, role, model.parameters)


def bytes_here(spec: AlignmentJobSpec, roles: Iterable[str], model: Decoder, bare: bool = False) -> dict[str, float]:
    """Bytes of roles whose processes all share one machine without GPUs, and of what they are forked from (`shared`).

    Weights on their way lie on its disk. bare: without head-room, and without what comes and goes with a step.
    """
    of_roles = {role: replicas_of(spec, role) * _forked_bytes(spec, role, model, bare) for role in roles}
    return of_roles | {"shared": SHARED_GIB * GIB}


def _forked_bytes(spec: AlignmentJobSpec, role: str, model: Decoder, bare: bool) -> float:
    """Of what stands in for one pod. Ranks of one trainee are torchrun's, and no forks."""
    processes = getattr(spec.roles, role).processes or 1
    memory = memory_of(spec, role, model, Place(False, processes * replicas_of(spec, role)))
    tensors = memory.state if bare else memory.total * HEADROOM["cpu"]
    if ROLES[role].samples:
        return tensors + cache_bytes(spec, role, False) + FORKED_VLLM_GIB * GIB
    return processes * (tensors + (FORKED_GIB if processes == 1 else PROCESS_GIB["cpu"]) * GIB)


def shortage(spec: AlignmentJobSpec, role: str, pool: Pool, model: Decoder) -> str | None:
    """Why the role's bare state cannot fit, and the smallest change that makes it fit; None when it may fit.

    Only what can never work is refused: activations and head-room are the planner's advice, not a rule.
    """
    size = size_of(spec, role, pool, model)
    return _on_gpus(spec, role, pool.gpu, model, size) if pool.gpu else _on_cpus(spec, role, model, size)


def _on_cpus(spec: AlignmentJobSpec, role: str, model: Decoder, size: Size) -> str | None:
    memory = memory_of(spec, role, model, Place(False, size.processes * replicas_of(spec, role)))
    need = size.processes * (memory.state + memory.snapshot) + cache_bytes(spec, role, False)
    need += scratch_bytes(spec, role, model.parameters)
    if need <= float(quantity_value(size.memory)):
        return None
    return _too_small(role, need, model, size.memory, f"roles.{role}.memory: {math.ceil(need / GIB)}Gi")


def _on_gpus(spec: AlignmentJobSpec, role: str, gpu: Gpu, model: Decoder, size: Size) -> str | None:
    if _state_fits(spec, role, gpu, model, size.gpus):
        return None
    found = f"{size.gpus} x {gpu.memory_gib:g} GiB ({gpu.product})"
    need = size.gpus * bytes_on_each_gpu(spec, role, model, size.gpus, bare=True)
    least = _least_gpus(lambda count: _state_fits(spec, role, gpu, model, count))
    change = f"roles.{role}.gpus: {least}" if least else "a smaller model, or GPUs of more memory"
    return _too_small(role, need, model, found, change)


def _too_small(role: str, need: float, model: Decoder, found: str, change: str) -> str:
    return (
        f"{role} needs {need / GIB:.1f} GiB a pod for {model.parameters:,} parameters, it has {found}; "
        f"smallest change that fits: {change}"
    )


def _gpus(spec: AlignmentJobSpec, role: str, gpu: Gpu, model: Decoder) -> int:
    """The least that hold it with head-room; where none do, those that hold its bare state."""
    wanted: AcceleratedRole = getattr(spec.roles, role)
    if wanted.gpus is not None:
        return wanted.gpus
    if ROLES[role].trainable and spec.training.sharding == "none":
        return 1
    whole = _least_gpus(
        lambda count: bytes_on_each_gpu(spec, role, model, count) * HEADROOM["gpu"] <= gpu.memory_gib * GIB
    )
    return whole or _least_gpus(lambda count: _state_fits(spec, role, gpu, model, count)) or 1


def gpus_of_a_copy(spec: AlignmentJobSpec, role: str, model: Decoder, gpus: int, memory: float) -> int:
    """How many of a frozen server's GPUs hold one copy together: the least that divide them evenly and have room.

    Copies side by side answer more than one that all GPUs hold. Where it has room nowhere, all of them hold one.
    memory: bytes of each.
    """

    def has_room(count: int) -> bool:
        return bytes_on_each_gpu(spec, role, model, count) * HEADROOM["gpu"] <= memory

    return next((count for count in range(1, gpus) if gpus % count == 0 and has_room(count)), gpus)


def _least_gpus(holds: Callable[[int], bool]) -> int | None:
    """The first number that holds; whatever is larger does, too."""
    counts = range(1, MOST_GPUS + 1)
    place = bisect_left(counts, True, key=holds)
    return counts[place] if place < len(counts) else None


def _state_fits(spec: AlignmentJobSpec, role: str, gpu: Gpu, model: Decoder, gpus: int) -> bool:
    return bytes_on_each_gpu(spec, role, model, gpus, bare=True) <= gpu.memory_gib * GIB


def bytes_on_each_gpu(spec: AlignmentJobSpec, role: str, model: Decoder, gpus: int, bare: bool = False) -> float:
    """Bytes on the fullest of a pod's GPUs: ranks share a trainee, servers spread a model over as many as they have."""
    memory = memory_of(spec, role, model, Place(True, gpus * replicas_of(spec, role)))
    held = memory.state if bare else memory.on_device
    return (held + cache_bytes(spec, role, True)) / gpus if ROLES[role].samples else held


def _host_bytes(spec: AlignmentJobSpec, role: str, model: Decoder, place: Place, headroom: float = 1.0) -> float:
    """Bytes of a pod's own memory, weights on their way apart. headroom: over what tensors take.

    On CPUs everything is there. Of a GPU a checkpoint passes through it, and the weights of what only serves.
    """
    processes = max(1, place.ranks // max(1, replicas_of(spec, role)))
    memory, cache = memory_of(spec, role, model, place), cache_bytes(spec, role, place.gpu)
    process = PROCESS_GIB["gpu" if place.gpu else "cpu"] * GIB
    if ROLES[role].samples:
        return memory.weights * headroom + (0 if place.gpu else cache) + max(process, VLLM_GIB * GIB)
    each = memory.total if not place.gpu else memory.snapshot if ROLES[role].trainable else memory.weights
    return processes * (each * headroom + process)
