"""Whether a job's processes fit this machine's memory, before they start."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from alignment_api.contract.roles import ROLES
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.sizing import (
    FROZEN_BYTES,
    SNAPSHOT_BYTES,
    TRAINED_BYTES,
    copies_of,
    replicas_of,
    scratch_bytes,
)
from alignment_api.derived.stages import stages_of
from alignment_api.rules.mutability import SCALABLE
from alignment_cli.display import memory_text

_TRAINED_BYTES = TRAINED_BYTES + SNAPSHOT_BYTES
"""A parameter in training: fp32 weight, gradient, AdamW's two moments, and a checkpoint's copy of them."""
_FROZEN_BYTES = 4
"""A parameter of a frozen model that computes as the policy does: its fp32 weight."""
_PROCESS_BYTES = 2**29
"""Python, torch and transformers, before any weight."""
_VLLM_BYTES = 3 * 2**30
"""A vLLM server before any weight: about 2 GiB of its own, and 1 GiB of keys and values."""
_PLACEMENTS = {
    ("dpo", "reference"): "write spec.roles.reference: {placement: withPolicy}, which needs no server",
    ("ppo", "critic"): "write spec.roles.critic: {placement: withActor}, which saves a process",
}
"""Algorithm and role -> how to do without processes of its own."""


def count_parameters(folder: Path) -> int | None:
    """Parameters of a Hugging Face folder, from the heads of its safetensors files; None where it has none."""
    files = sorted(folder.glob("*.safetensors"))
    return sum(map(_count_in, files)) if files else None


def _count_in(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        head = json.loads(stream.read(length))
    count = 0
    for name, tensor in head.items():
        size = 1
        for dimension in tensor.get("shape", ()):
            size *= dimension
        count += size if name != "__metadata__" else 0
    return count


def memory_advice(spec: AlignmentJobSpec, parameters: int, available: int) -> str | None:
    """What to write where the weights of a stage's processes do not fit; None where they do, activations aside."""
    for stage in stages_of(spec):
        held = {
            role: (replicas_of(spec, role), _pod_bytes(spec, role, parameters))
            for role in stage.roles
            if ROLES[role].accelerated
        }
        need = sum(pods * each for pods, each in held.values())
        if need > available:
            what = ", ".join(f"{role} {_times(pods)}{memory_text(each)}" for role, (pods, each) in held.items() if pods)
            return (
                f"stage {stage.name} needs {memory_text(need)} with {parameters:,} parameters ({what}), this machine "
                f"has {memory_text(available)} free; {_less(spec.algorithm.name, held)}"
            )
    return None


def _pod_bytes(spec: AlignmentJobSpec, role: str, parameters: int) -> int:
    """Bytes of one process before activations; a gang's processes share the trained state."""
    scratch = scratch_bytes(spec, role, parameters)
    if ROLES[role].samples:
        return parameters * FROZEN_BYTES[spec.training.precision] + scratch + _VLLM_BYTES
    each = _TRAINED_BYTES if ROLES[role].trainable else _FROZEN_BYTES
    sharers = replicas_of(spec, role) if ROLES[role].trainable else 1
    return parameters * each * copies_of(spec, role) // sharers + scratch + _PROCESS_BYTES


def _less(algorithm: str, held: Mapping[str, tuple[int, int]]) -> str:
    """What to write instead, from what is there."""
    for role in held:
        if (algorithm, role) in _PLACEMENTS:
            return _PLACEMENTS[algorithm, role]
    servers = [role for role in SCALABLE if held.get(role, (0, 0))[0] > 1]
    if servers:
        return f"write replicas: 1 for {' and '.join(servers)}"
    return "take a smaller model, or run it on a cluster"


def _times(pods: int) -> str:
    return f"{pods} x " if pods > 1 else ""
