"""How large a role's pod is where the spec does not say.

Bytes per parameter: a trainee holds 4 (fp32 master) + 4 (gradients) + 8 (AdamW's moments), over all its ranks with
`fsdp2`, whatever the precision. A frozen copy holds 2 (bf16) or 4 (fp32); as long as nobody knows which (`auto`), it
counts as the larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from alignment_api.contract.platform import Pool
from alignment_api.contract.quantity import quantity_value
from alignment_api.contract.role_spec import AcceleratedRole
from alignment_api.contract.roles import ROLES
from alignment_api.contract.spec import AlignmentJobSpec

GIB = 1024**3
TRAINED_BYTES = 16
"""Bytes per parameter of a trainee, over all its ranks."""
SNAPSHOT_BYTES = 12
"""Bytes per parameter, in host memory, of a checkpoint on its way to storage: fp32 weight and AdamW's two moments."""
FROZEN_BYTES = {"auto": 4, "bf16": 2, "fp32": 4}
"""Bytes per parameter of a frozen copy."""
HEADROOM = Fraction(6, 5)
"""Activations, buffers and fragmentation: the upper end of the guide's 1.15-1.20."""
UNKNOWN_PARAMETERS = {"gpu": 8 * 10**9, "cpu": 10**9}
"""Parameters taken for granted until `prepare` has looked: the common size on GPUs, a small model on CPUs."""
PROCESS_GIB = 4
"""Host memory of one rank beside its share of the model: Python, torch, activations on CPU or pinned buffers."""
WEIGHT_VERSIONS = 2
"""Versions of the weights on their way: the one in use and the next."""
KV_CACHE_GIB = 1
"""Keys and values of a rollout server on CPUs, where the spec does not say; on GPUs they take what weights leave."""
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


def replicas_of(spec: AlignmentJobSpec, role: str) -> int:
    """Pods of a role while its stage runs; a role without the field has one."""
    return int(getattr(getattr(spec.roles, role), "replicas", 1))


def size_of(spec: AlignmentJobSpec, role: str, pool: Pool, parameters: int | None) -> Size:
    """The size of one pod: what the spec says, else what the model's parameters ask for.

    parameters: of the model as `prepare` found it; None before that.
    """
    wanted = getattr(spec.roles, role)
    if not ROLES[role].accelerated:
        return Size(1, 0, wanted.cpu or "1", wanted.memory or f"{PREPARE_GIB}Gi")
    known = parameters or UNKNOWN_PARAMETERS["gpu" if pool.gpu else "cpu"]
    gpus = _gpus(spec, role, pool, known)
    processes = gpus or wanted.processes or 1
    cores = gpus * CORES_PER_GPU or processes
    scratch = math.ceil(scratch_bytes(spec, role, known) / GIB)
    cache = math.ceil(_cache_bytes(spec, role, pool) / GIB) if pool.gpu is None else 0
    memory = _host_gib(spec, role, pool, processes, known) + scratch + cache
    return Size(processes, gpus, wanted.cpu or str(cores), wanted.memory or f"{memory}Gi", scratch)


def probe_bytes(spec: AlignmentJobSpec) -> int:
    """Bytes of weights that `prepare` may load to probe a model: what its process leaves, at least a quarter."""
    memory = int(quantity_value(spec.roles.prepare.memory or f"{PREPARE_GIB}Gi"))
    return max(memory // 4, memory - int(PREPARE_PROCESS_GIB * GIB))


def copies_of(spec: AlignmentJobSpec, role: str) -> int:
    """Models in one pod of the role: a reward server has all of them, an actor may have its critic."""
    if role == "reward":
        return sum(reward.function is None for reward in spec.algorithm.rewards)
    return 2 if role == "actor" and spec.algorithm.ppo and spec.roles.critic.placement == "withActor" else 1


def state_bytes(spec: AlignmentJobSpec, role: str, parameters: int) -> int:
    """Bytes of the role's models and optimizers over all its pods, without any head-room."""
    each = TRAINED_BYTES if ROLES[role].trainable else FROZEN_BYTES[spec.training.precision]
    return each * parameters * copies_of(spec, role)


def scratch_bytes(spec: AlignmentJobSpec, role: str, parameters: int) -> int:
    """Bytes of the weights on their way that one pod keeps in memory; 0 where none are delivered."""
    if spec.algorithm.online is None or not ROLES[role].delivers:
        return 0
    return WEIGHT_VERSIONS * FROZEN_BYTES[spec.training.precision] * parameters


def shortage(spec: AlignmentJobSpec, role: str, pool: Pool, parameters: int) -> str | None:
    """Why the role's bare state cannot fit, and the smallest change that makes it fit; None when it may fit.

    Only what can never work is refused: head-room is the planner's advice, not a rule.
    """
    size = size_of(spec, role, pool, parameters)
    need = state_bytes(spec, role, parameters) / _sharers(spec, role) + _cache_bytes(spec, role, pool)
    need += scratch_bytes(spec, role, parameters) if pool.gpu is None else 0  # a GPU's weights are not in its memory
    need += _snapshot(spec, role, pool, parameters)
    found = size.gpus * pool.gpu.memory_gib * GIB if pool.gpu else float(quantity_value(size.memory))
    if need <= found:
        return None
    if pool.gpu:
        least = math.ceil(need / (pool.gpu.memory_gib * GIB))
        change = f"roles.{role}.gpus: {least}"
        what = f"{size.gpus} x {pool.gpu.memory_gib:g} GiB ({pool.gpu.product})"
    else:
        change = f"roles.{role}.memory: {math.ceil(need / GIB)}Gi"
        what = size.memory
    return (
        f"{role} needs {need / GIB:.1f} GiB a pod for {parameters:,} parameters, it has {what}; "
        f"smallest change that fits: {change}"
    )


def _gpus(spec: AlignmentJobSpec, role: str, pool: Pool, parameters: int) -> int:
    wanted: AcceleratedRole = getattr(spec.roles, role)
    if pool.gpu is None:
        return 0
    if wanted.gpus is not None:
        return wanted.gpus
    if ROLES[role].trainable and spec.training.sharding == "none":
        return 1
    need = state_bytes(spec, role, parameters) * HEADROOM / _sharers(spec, role) + _cache_bytes(spec, role, pool)
    return max(1, math.ceil(need / Fraction(pool.gpu.memory_gib * GIB)))


def _host_gib(spec: AlignmentJobSpec, role: str, pool: Pool, processes: int, parameters: int) -> int:
    """On a CPU pool the state lives here; on a GPU pool it passes through, when it is loaded and when it is saved."""
    shared = state_bytes(spec, role, parameters) * HEADROOM / _sharers(spec, role)
    shared += _snapshot(spec, role, pool, parameters)
    return math.ceil(shared / GIB) + PROCESS_GIB * processes


def _snapshot(spec: AlignmentJobSpec, role: str, pool: Pool, parameters: int) -> Fraction:
    """Bytes of a pod's share of a checkpoint that is being written; on a GPU pool loading takes as much host memory."""
    if pool.gpu or not ROLES[role].trainable:
        return Fraction(0)
    return Fraction(SNAPSHOT_BYTES * parameters * copies_of(spec, role), _sharers(spec, role))


def _sharers(spec: AlignmentJobSpec, role: str) -> int:
    """Pods that share one state: those of a gang. Every server has its own."""
    return replicas_of(spec, role) if ROLES[role].trainable else 1


def _cache_bytes(spec: AlignmentJobSpec, role: str, pool: Pool) -> int:
    """Keys and values of one rollout server: on GPUs, where the spec does not say, what the weights leave."""
    if not ROLES[role].samples:
        return 0
    asked = spec.roles.rollout.kv_cache_memory
    if asked is not None:
        return int(quantity_value(asked))
    return KV_CACHE_GIB * GIB if pool.gpu is None else 0
