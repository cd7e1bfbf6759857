"""Whether published weights are those of the model that a server has. vLLM itself only warns of a missing tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from alignment_trainer.model.folder import causal_network, config_of
from alignment_trainer.weights.manifest import WeightManifest

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ModelTensors:
    """Names on the hub with their shapes. needed: the parameters, tied ones once.

    allowed: what may come with them: the other names of tied ones, and what else the model's files hold.
    """

    needed: Shapes
    allowed: Shapes
    dtype: str


class WeightsRefused(ValueError):
    """Published weights that do not fit this server's model."""


def model_tensors(folder: Path, dtype: str) -> ModelTensors:
    """Of the model in a Hugging Face folder. No weight is loaded."""
    import torch

    config = config_of(folder)
    with torch.device("meta"):
        model = causal_network(config)
    needed = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    tied = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    return ModelTensors(needed, dict(_stored(folder)) | tied, dtype)


def check_manifest(manifest: WeightManifest, model: ModelTensors) -> None:
    """Raises WeightsRefused with the first tensor that is missing, unknown, or of another shape or dtype."""
    published = manifest.tensors
    wrong = [f"no tensor `{name}`" for name in model.needed if name not in published]
    wrong += [f"tensor `{name}`, which the model does not have" for name in published if name not in model.allowed]
    for name in sorted(published.keys() & model.allowed.keys()):
        if (found := published[name]) != (expected := (model.dtype, model.allowed[name])):
            wrong.append(f"tensor `{name}` is {found[0]} {list(found[1])}, not {expected[0]} {list(expected[1])}")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise WeightsRefused(
            f"weights {manifest.name}: {wrong[0]}{more}; trainee and servers need the same spec.model and "
            "spec.training.precision"
        )


def _stored(folder: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What the folder's files hold, by their headers."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            yield from ((name, tuple(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
