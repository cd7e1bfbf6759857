"""What the actor sends a critic: prompt groups and what their tokens are worth, as safetensors; the rest as JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, fields
from types import NoneType
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from alignment_trainer.checkpoint.attempt import Start
from alignment_trainer.checkpoint.checkpoint import read_checkpoint
from alignment_trainer.checkpoint.claims import checkpoints_of
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.group_arrays import group_arrays
from alignment_trainer.data.storage import Storage
from alignment_trainer.experience.minibatches import UpdateKey
from alignment_trainer.experience.value_trainer import ValueBatch
from alignment_trainer.process.errors import WireError
from alignment_trainer.serving.wire import groups_from, load_body

PATHS = tuple(f"/v1/critic/{what}" for what in ("begin", "values", "update", "write", "written", "alive", "release"))
BEGIN_PATH, VALUES_PATH, UPDATE_PATH, WRITE_PATH, WRITTEN_PATH, ALIVE_PATH, RELEASE_PATH = PATHS
ATTEMPT_HEADER = "X-Alignment-Attempt"
"""Of every request: a critic answers its own gang's actor alone (409 otherwise)."""
_CHECKPOINT = re.compile(r"[0-9]{4,}/[0-9]{8,}(-[0-9]{4,})?")
_VALUES = ("values", "returns", "weights")
_METADATA = ("key", "learning_rate", "scale")


def encode_begin(start: Start | None) -> bytes:
    """What the critic shall start from: a checkpoint by its name, in the job's storage or that of resumeFrom."""
    if start is None:
        return json.dumps({"start": None}).encode()
    return json.dumps({"start": start.checkpoint.name, "resumes": start.resumes}).encode()


def decode_begin(body: bytes, storage: Storage, other: Storage | None) -> Start | None:
    """other: the storage of checkpoint.resumeFrom. Raises WireError."""
    asked = _json_object(body, {"start": (str, NoneType)})
    if asked["start"] is None:
        return None
    resumes = _json_object(body, {"resumes": (bool,)})["resumes"]
    root = storage if resumes else other
    if root is None:
        raise WireError("the critic shall start from another job's checkpoint, but its spec has no resumeFrom")
    return Start.of(read_checkpoint(_checkpoint(root, asked["start"])), resumes)


def encode_write(name: str) -> bytes:
    """Of which checkpoint the critic shall write its part, below the folder of checkpoints."""
    return json.dumps({"checkpoint": name}).encode()


def decode_write(body: bytes, storage: Storage) -> Storage:
    """Where that checkpoint lies. Raises WireError."""
    return _checkpoint(storage, _json_object(body, {"checkpoint": (str,)})["checkpoint"])


def _checkpoint(storage: Storage, name: str) -> Storage:
    """Raises WireError for what is no name of a checkpoint, which might lead anywhere."""
    if not _CHECKPOINT.fullmatch(name):
        raise WireError("no name of a checkpoint; send TERM/STEP or TERM/STEP-UPDATES in digits")
    return checkpoints_of(storage).within(name)


def encode_groups(groups: tuple[PromptGroup, ...]) -> bytes:
    """The body of a request for values."""
    return save(group_arrays(groups))


def decode_groups(body: bytes, vocabulary: int) -> tuple[PromptGroup, ...]:
    """Raises WireError."""
    return groups_from(load_body(body)[0], vocabulary)


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


def decode_update(body: bytes, vocabulary: int) -> tuple[UpdateKey, float, ValueBatch]:
    """Raises WireError."""
    arrays, metadata = load_body(body)
    missing = [name for name in _VALUES if name not in arrays] + [name for name in _METADATA if name not in metadata]
    if missing:
        raise WireError(f"an update without {', '.join(missing)}; found {sorted(arrays)}, {sorted(metadata)}")
    groups = groups_from(arrays, vocabulary)
    tokens = sum(group.completion_tokens for group in groups)
    for name in _VALUES:
        found = arrays[name]
        if found.dtype != np.float32 or found.shape != (tokens,) or not np.isfinite(found).all():
            raise WireError(f"`{name}` is {found.dtype} {found.shape}; send {tokens} finite float32")
    tensors = {name: torch.from_numpy(arrays[name]) for name in _VALUES}
    learning_rate, scale = (_positive(metadata, name) for name in ("learning_rate", "scale"))
    return _update_key(metadata["key"]), learning_rate, ValueBatch(groups, **tensors, scale=scale)


def _update_key(text: str) -> UpdateKey:
    names = [field.name for field in fields(UpdateKey)]
    return UpdateKey(**_json_object(text.encode(), dict.fromkeys(names, (int,))))


def _json_object(body: bytes, wanted: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """Those members of a JSON object. Raises WireError."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON ({len(body)} bytes): {type(error).__name__}") from error
    if not isinstance(found, dict):
        raise WireError(f"not a JSON object, but {type(found).__name__}; send {', '.join(wanted)}")
    for name, types in wanted.items():
        if type(found.get(name, ...)) not in types:
            raise WireError(f"`{name}` is missing or no {' or '.join(t.__name__ for t in types)}")
    return {name: found[name] for name in wanted}


def _positive(metadata: Mapping[str, str], name: str) -> float:
    """At least 0, and finite."""
    try:
        value = float(metadata[name])
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise WireError(f"`{name}` is no finite number of at least 0")
    return value
