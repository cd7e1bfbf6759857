"""How large a role's pod is where the spec does not say.

Bytes per parameter (the guide's): a trainee holds 2 (bf16 weights) + 2 (gradients) + 12 (fp32 master and AdamW's
moments); in fp32 on CPU 4 + 4 + 8: 16 either way. A frozen copy holds 2 (bf16) or 4 (fp32).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from alignment_api.platform import Pool
from alignment_api.quantity import quantity_value
from alignment_api.role_spec import AcceleratedRole
from alignment_api.roles import ROLES
from alignment_api.spec import AlignmentJobSpec

GIB = 1024**3
TRAINED_BYTES = 16
"""Bytes per parameter of a trainee, over all its ranks."""
FROZEN_BYTES = {"bf16": 2, "fp32": 4}
"""Bytes per parameter of a frozen copy."""
HEADROOM = Fraction(6, 5)
"""Activations, buffers and fragmentation: the upper end of the guide's 1.15-1.20."""
UNKNOWN_PARAMETERS = {"gpu": 8 * 10**9, "cpu": 10**9}
"""Parameters taken for granted until `prepare` has looked: the common size on GPUs, a small model on CPUs."""
PROCESS_GIB = 4
"""Host memory of one rank beside its share of the model: Python, torch, activations on CPU or pinned buffers."""
PREPARE_GIB = 4
"""Memory of `prepare`: it streams rows and files, and holds the tokens of one shard."""
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
    return Size(
        processes, gpus, wanted.cpu or str(cores), wanted.memory or f"{_host_gib(spec, role, processes, known)}Gi"
    )


def state_bytes(spec: AlignmentJobSpec, role: str, parameters: int) -> int:
    """Bytes of the role's model and optimizer over all its pods, without any head-room."""
    each = TRAINED_BYTES if ROLES[role].trainable else FROZEN_BYTES[spec.training.precision]
    return each * parameters


def shortage(spec: AlignmentJobSpec, role: str, pool: Pool, parameters: int) -> str | None:
    """Why the role's bare state cannot fit, and the smallest change that makes it fit; None when it may fit.

    Only what can never work is refused: head-room is the planner's advice, not a rule.
    """
    size = size_of(spec, role, pool, parameters)
    need = state_bytes(spec, role, parameters) / replicas_of(spec, role)
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
    each = pool.gpu.memory_gib * GIB * replicas_of(spec, role)
    return max(1, math.ceil(state_bytes(spec, role, parameters) * HEADROOM / Fraction(each)))


def _host_gib(spec: AlignmentJobSpec, role: str, processes: int, parameters: int) -> int:
    """On a CPU pool the state lives here; on a GPU pool it passes through, when it is loaded and when it is saved."""
    pods = replicas_of(spec, role) if ROLES[role].trainable else 1
    return math.ceil(state_bytes(spec, role, parameters) * HEADROOM / pods / GIB) + PROCESS_GIB * processes
