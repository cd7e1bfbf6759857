"""Whether published weights are those of the model that a server has. vLLM itself only warns of a missing tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alignment_trainer.weights.manifest import WeightManifest

Shapes = Mapping[str, tuple[int, ...]]


class WeightsRefused(ValueError):
    """Published weights that do not fit this server's model."""


def parameter_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name on the hub -> shape, of every parameter of a model's folder; tied ones once. No weight is loaded."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def check_manifest(manifest: WeightManifest, shapes: Shapes, dtype: str) -> None:
    """Raises WeightsRefused with the first tensor that is missing, unknown, or of another shape or dtype."""
    published = manifest.tensors
    wrong = [f"no tensor `{name}`" for name in shapes if name not in published]
    wrong += [f"tensor `{name}`, which the model does not have" for name in published if name not in shapes]
    for name in sorted(published.keys() & shapes.keys()):
        if (found := published[name]) != (expected := (dtype, shapes[name])):
            wrong.append(f"tensor `{name}` is {found[0]} {list(found[1])}, not {expected[0]} {list(expected[1])}")
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise WeightsRefused(
            f"weights {manifest.name}: {wrong[0]}{more}; trainee and servers need the same spec.model and "
            "spec.training.precision"
        )
