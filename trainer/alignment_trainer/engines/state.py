"""Training state on disk: one format for every engine and any number of ranks.

Each rank writes the parameters whose turn is its own to `state-<rank>-of-<ranks>.safetensors`, under
`<kind>/<parameter's name in the model's folder>` with the kinds weight, exp_avg and exp_avg_sq, all in fp32. A prefix
tells the files of two models in one checkpoint apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from alignment_trainer.data.drafts import TensorDraft
from alignment_trainer.engines.base import Engine, ParameterState
from alignment_trainer.model.weight_files import StoredTensor, read_header
from alignment_trainer.model.weights import read_slice
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
    """The parts of a folder, read a slice at a time."""

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self._paths = _parts(folder, prefix)
        if not self._paths or len(self._paths) != int(self._paths[0].stem.rpartition("-")[2]):
            raise IncompleteStateError(
                f"{folder}: found {len(self._paths)} parts of the training state, not all of them"
            )
        self._stored = {key: tensor for path in self._paths for key, tensor in read_header(path).items()}
        self._folder = folder

    @property
    def steps(self) -> int:
        with safe_open(self._paths[0], framework="pt") as part:
            return int(part.metadata()["steps"])

    @property
    def weights(self) -> "SavedWeights":
        return SavedWeights(self)

    def shapes(self, kind: str) -> dict[str, tuple[int, ...]]:
        """Of every parameter, by its name in the model's folder; only headers are read."""
        return {
            key.removeprefix(f"{kind}/"): tensor.shape
            for key, tensor in self._stored.items()
            if key.startswith(f"{kind}/")
        }

    def get(self, kind: str, name: str) -> Tensor:
        """The whole tensor, in its shape."""
        stored = self._find(kind, name)
        return read_slice(stored, 0, prod(stored.shape)).view(stored.shape)

    def read(self, kind: str, name: str, begin: int, end: int) -> Tensor:
        """Numbers `begin` to `end` of the tensor laid flat; nothing else is read."""
        return read_slice(self._find(kind, name), begin, end)

    def _find(self, kind: str, name: str) -> StoredTensor:
        key = f"{kind}/{name}"
        if key not in self._stored:
            raise IncompleteStateError(f"{self._folder}: holds no {key}; it was saved from another model")
        return self._stored[key]


@dataclass(frozen=True)
class SavedWeights:
    """The weights of a saved state, as an engine reads those of a model's folder."""

    saved: SavedState

    def read(self, name: str, begin: int, end: int) -> Tensor:
        return self.saved.read("weight", name, begin, end)


def take_turns(number: int) -> bool:
    """Whether this rank keeps parameter `number`."""
    return number % distributed.world_size() == distributed.rank()


def to_cpu(tensor: Tensor) -> Tensor:
    """A copy of its own, so that a later step does not change it."""
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
