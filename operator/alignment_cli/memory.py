"""Whether a job's processes fit this machine's memory, before they start."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from alignment_api.spec import AlignmentJobSpec
from alignment_cli.display import memory_text

_POLICY_BYTES = 16
"""A parameter in training: fp32 weight, gradient and AdamW's two moments, 4 bytes each."""
_REFERENCE_BYTES = 4
"""A parameter of a frozen model that computes as the policy does: its fp32 weight."""
_PROCESS_BYTES = 2**29
"""Python, torch and transformers, before any weight."""


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
    """What to write where the weights alone do not fit; None where they do. Activations come on top."""
    policy = parameters * _POLICY_BYTES + _PROCESS_BYTES
    servers = 0 if spec.roles.reference.placement == "withPolicy" else spec.roles.reference.replicas
    references = servers * (parameters * _REFERENCE_BYTES + _PROCESS_BYTES)
    has = f"this machine has {memory_text(available)} free"
    if references > available:
        return (
            f"{servers} reference server(s) of {parameters:,} parameters need {memory_text(references)}, {has}; "
            "write spec.roles.reference: {placement: withPolicy}, which needs none"
        )
    if policy > available:
        return (
            f"training {parameters:,} parameters needs {memory_text(policy)} for weights, gradients and optimizer, "
            f"{has}; take a smaller model, or run it on a cluster"
        )
    return None
