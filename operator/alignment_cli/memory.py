"""Whether a job's processes fit this machine's memory, before they start."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

from alignment_api.contract.roles import ROLES
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import ModelShape
from alignment_api.derived.decoder import Decoder, shape_in
from alignment_api.derived.micro_batch import assumed, least_tokens
from alignment_api.derived.reward_stage import spec_of_stage
from alignment_api.derived.role_memory import replicas_of
from alignment_api.derived.sizing import bytes_here
from alignment_api.derived.stages import stages_of
from alignment_api.rules.mutability import SCALABLE
from alignment_cli.display import memory_text

_LONGEST_HEAD = 100_000_000
"""Bytes of a safetensors file's head, as its own library has it."""
_PLACEMENTS = {
    ("prepare", "reference"): "write spec.roles.reference: {placement: withPolicy}, which needs no server",
    ("train", "critic"): "write spec.roles.critic: {placement: withActor}, which saves a process",
}
"""Stage and role -> how to do without processes of its own."""


def read_decoder(folder: Path) -> Decoder | None:
    """The model in a Hugging Face folder, by its config and the heads of its safetensors files; None without those.

    What is damaged is as good as missing here: `prepare` refuses it by name.
    """
    parameters = count_parameters(folder)
    return Decoder.of(parameters, _shape_in(folder / "config.json")) if parameters is not None else None


def _shape_in(file: Path) -> ModelShape | None:
    try:
        config = json.loads(file.read_bytes())
        return shape_in(config) if isinstance(config, dict) else None
    except (FileNotFoundError, ValueError, TypeError):
        return None


def count_parameters(folder: Path) -> int | None:
    """Parameters of a Hugging Face folder, from the heads of its safetensors files; None where it has none, or one
    that is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    try:
        return sum(map(_count_in, files)) if files else None
    except (struct.error, ValueError, TypeError, AttributeError):
        return None


def _count_in(file: Path) -> int:
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        head = json.loads(stream.read(min(length, _LONGEST_HEAD)))
    count = 0
    for name, tensor in head.items():
        size = 1
        for dimension in tensor.get("shape", ()):
            size *= dimension
        count += size if name != "__metadata__" else 0
    return count


def memory_advice(spec: AlignmentJobSpec, model: Decoder, available: int) -> str | None:
    """What to write where a stage's processes do not fit; None where they do, with the least computed at once."""
    for stage in stages_of(spec):
        own = spec_of_stage(spec, stage.name)
        roles = [role for role in stage.roles if ROLES[role].accelerated]
        held = bytes_here(assumed(own, least_tokens(own)), roles, model) if roles else {}
        need = sum(held.values())
        if need > available:
            pods = {role: replicas_of(own, role) for role in roles}
            what = ", ".join(_share(name, pods.get(name, 1), each) for name, each in held.items() if each)
            return (
                f"stage {stage.name} needs {memory_text(need)} with {model.parameters:,} parameters ({what}), this "
                f"machine has {memory_text(available)} free; {_less(stage.name, pods)}"
            )
    return None


def _less(stage: str, pods: Mapping[str, int]) -> str:
    """What to write instead, from the roles that are there."""
    for role in pods:
        if (stage, role) in _PLACEMENTS:
            return _PLACEMENTS[stage, role]
    servers = [role for role in SCALABLE if pods.get(role, 0) > 1]
    if servers:
        return f"write replicas: 1 for {' and '.join(servers)}"
    return "take a smaller model, or run it on a cluster"


def _share(name: str, pods: int, held: float) -> str:
    return f"{name} {pods} x {memory_text(held / pods)}" if pods > 1 else f"{name} {memory_text(held)}"
