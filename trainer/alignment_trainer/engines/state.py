"""Training state on disk: one format for every engine and any number of ranks.

Each rank writes the parameters whose turn is its own to `state-<rank>-of-<ranks>.safetensors`, under
`<kind>/<parameter's name in the model's folder>` with the kinds weight, exp_avg and exp_avg_sq, all in fp32. A prefix
tells the files of two models in one checkpoint apart.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from alignment_trainer.data.drafts import TensorDraft
from alignment_trainer.engines.base import Engine, ParameterState
from alignment_trainer.model.heads import PackedModel
from alignment_trainer.process import distributed
from alignment_trainer.process.errors import UserError

KINDS = tuple(field.name for field in fields(ParameterState))


class IncompleteStateError(ValueError):
    """A part of the training state is missing."""


def draft_state(engine: Engine, prefix: str = "") -> TensorDraft:
    """A copy of this rank's part, to be written; collective. Raises UserError, on every rank."""
    rank, ranks = distributed.rank(), distributed.world_size()
    tensors = {
        f"{kind}/{name}": getattr(state, kind)
        for name, state in engine.full_state()
        if state is not None
        for kind in KINDS
    }
    refuse_not_finite(tensors)
    name = f"{prefix}state-{rank:05d}-of-{ranks:05d}.safetensors"
    return TensorDraft(name, tensors, metadata={"steps": str(engine.steps)})


def refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError by the name of a tensor that is not finite on some rank, on every rank; collective."""
    here = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
    odd = [name for name in distributed.gather_objects(here) if name is not None]
    if odd:
        raise UserError(
            "NotFinite",
            f"{odd[0]} holds numbers that are not finite, so nothing is written; what was written before stays. Lower "
            "`learningRate` or `maxGradNorm`",
        )


def holds_state(folder: Path, prefix: str = "") -> bool:
    """Whether a checkpoint has a part of this trainee at all."""
    return bool(_parts(folder, prefix))


def _parts(folder: Path, prefix: str) -> list[Path]:
    return sorted(folder.glob(f"{prefix}state-*-of-*.safetensors"))


class SavedState:
    """The parts of a folder, read a tensor at a time."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        paths = _parts(folder, prefix)
        if not paths or len(paths) != int(paths[0].stem.rpartition("-")[2]):
            raise IncompleteStateError(f"{folder}: found {len(paths)} parts of the training state, not all of them")
        self._parts: list[Any] = [safe_open(path, framework="pt") for path in paths]
        self._part_of = {key: part for part in self._parts for key in part.keys()}  # noqa: SIM118 (not a mapping)
        self._folder = folder

    @property
    def steps(self) -> int:
        return int(self._parts[0].metadata()["steps"])

    def shapes(self, kind: str) -> dict[str, tuple[int, ...]]:
        """Of every parameter, by its name in the model's folder; only headers are read."""
        return {
            key.removeprefix(f"{kind}/"): tuple(part.get_slice(key).get_shape())
            for key, part in self._part_of.items()
            if key.startswith(f"{kind}/")
        }

    def get(self, kind: str, name: str) -> Tensor:
        key = f"{kind}/{name}"
        if key not in self._part_of:
            raise IncompleteStateError(f"{self._folder}: holds no {key}; it was saved from another model")
        tensor: Tensor = self._part_of[key].get_tensor(key)
        return tensor


def load_weights(scorer: PackedModel, folder: Path, prefix: str = "") -> None:
    """Copies the saved weights into the model. Call it before an engine takes the model over."""
    saved = SavedState(folder, prefix)
    with torch.no_grad():
        for name, parameter in scorer.named_parameters():
            parameter.copy_(saved.get("weight", scorer.hub_names[name]))


def take_turns(number: int) -> bool:
    """Whether this rank keeps parameter `number`."""
    return number % distributed.world_size() == distributed.rank()


def to_cpu(tensor: Tensor) -> Tensor:
    """A copy of its own, so that a later step does not change it."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
