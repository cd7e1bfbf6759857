"""What the actor sends a critic: prompt groups and what their tokens are worth, as safetensors; the rest as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from alignment_trainer.checkpoint.attempt import Start
from alignment_trainer.data.group_arrays import WireError, group_arrays, groups_of
from alignment_trainer.data.packing import PromptGroup
from alignment_trainer.experience.minibatches import UpdateKey
from alignment_trainer.experience.value_trainer import ValueBatch
from alignment_trainer.serving.wire import load_body

PATHS = tuple(f"/v1/critic/{what}" for what in ("begin", "values", "update", "write", "alive", "release"))
BEGIN_PATH, VALUES_PATH, UPDATE_PATH, WRITE_PATH, ALIVE_PATH, RELEASE_PATH = PATHS
ATTEMPT_HEADER = "X-Alignment-Attempt"
"""Of every request: a critic answers its own gang's actor alone (409 otherwise)."""
_VALUES = ("values", "returns", "weights")
_METADATA = ("key", "learning_rate", "scale")


def encode_begin(start: Start | None, storage: Path) -> bytes:
    """What the critic shall start from: a checkpoint below the job's storage; the name of one in resumeFrom's."""
    if start is None:
        return json.dumps({"start": None}).encode()
    root = storage if start.resumes else start.folder.parents[2]
    return json.dumps({"start": str(start.folder.relative_to(root)), "resumes": start.resumes}).encode()


def decode_begin(body: bytes, storage: Path, other: Path | None) -> Start | None:
    """other: the storage of checkpoint.resumeFrom. Raises WireError."""
    asked = json.loads(body)
    if asked["start"] is None:
        return None
    root = storage if asked["resumes"] else other
    if root is None:
        raise WireError("the critic shall start from another job's checkpoint, but its spec has no resumeFrom")
    return Start(root / asked["start"], asked["resumes"])


def encode_groups(groups: tuple[PromptGroup, ...]) -> bytes:
    """The body of a request for values."""
    return save(group_arrays(groups))


def decode_groups(body: bytes) -> tuple[PromptGroup, ...]:
    """Raises WireError."""
    return groups_of(load_body(body)[0])


def encode_values(values: Tensor) -> bytes:
    """The answer: (tokens,)."""
    return save({"values": values.float().numpy()})


def decode_values(body: bytes, tokens: int) -> Tensor:
    """Raises WireError where there are not so many."""
    values = load_body(body)[0].get("values")
    if values is None or values.shape != (tokens,) or not np.isfinite(values).all():
        raise WireError(f"no {tokens} finite `values`; found {None if values is None else values.shape}")
    return torch.from_numpy(values)


def encode_update(key: UpdateKey, learning_rate: float, batch: ValueBatch) -> bytes:
    """The body of one update."""
    arrays = group_arrays(batch.groups) | {name: getattr(batch, name).float().numpy() for name in _VALUES}
    metadata = {"key": json.dumps(asdict(key)), "learning_rate": repr(learning_rate), "scale": repr(batch.scale)}
    return save(arrays, metadata=metadata)


def decode_update(body: bytes) -> tuple[UpdateKey, float, ValueBatch]:
    """Raises WireError."""
    arrays, metadata = load_body(body)
    missing = [name for name in _VALUES if name not in arrays] + [name for name in _METADATA if name not in metadata]
    if missing:
        raise WireError(f"an update without {', '.join(missing)}; found {sorted(arrays)}, {sorted(metadata)}")
    tensors = {name: torch.from_numpy(arrays[name]) for name in _VALUES}
    key = UpdateKey(**json.loads(metadata["key"]))
    return (
        key,
        float(metadata["learning_rate"]),
        ValueBatch(groups_of(arrays), **tensors, scale=float(metadata["scale"])),
    )
