"""LoRA (Hu et al. 2021): small matrices beside those of a model's layers are trained, and all else stays as it came.

W x becomes W x + scale B (A x). The layers are peft's own. An adapter's matrices are called as peft's files call them,
the base's as in the model's folder.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from alignment_api.contract.spec import Lora
from alignment_trainer.model.cut import layers_of
from alignment_trainer.model.mistakes import UnsupportedModelError
from alignment_trainer.model.weights import Weights
from alignment_trainer.process.errors import UserError

FIELD = "spec.training.lora.targets"
PEFT = "base_model.model."
"""What peft's files put before a name of the architecture."""
_NAME = "default"
"""Of the adapter, within peft's layers."""
_A, _B = "lora_A", "lora_B"
_SHOWN = 3
"""Nearest names that a message shows."""


@dataclass(frozen=True)
class Adapters:
    """What of a model is trained, and what is beside it.

    base: the model, as peft looks for it. modules: that have an adapter, by name. shapes: of the base's weights.
    trained: names of adapters, and of a value model's head.
    """

    options: Lora
    base: str
    modules: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    trained: frozenset[str]

    def pair(self, module: str) -> tuple[str, str]:
        """Names of a module's A, of shape (rank, inputs), and B, of shape (outputs, rank)."""
        return f"{PEFT}{module}.{_A}.weight", f"{PEFT}{module}.{_B}.weight"

    def module_of(self, weight: str) -> str | None:
        """The module whose adapter changes that weight of the base; None where none does."""
        module = weight.removesuffix(".weight")
        return module if module in self.modules else None

    @property
    def matrices(self) -> list[str]:
        """Names of all As and Bs."""
        return [name for module in self.modules for name in self.pair(module)]


def targets_in(network: Any, lora: Lora) -> tuple[str, ...]:
    """Names of the linear layers that get an adapter. Nothing is read; `network` may be on the device `meta`.

    Raises UserError for a target that is none, UnsupportedModelError for a model whose layers hold more than that.
    """
    linear = _linear_layers(network)
    for target in lora.targets or ():
        if not any(_ends(name, target) for name in linear):
            raise UserError("UnknownTarget", f"{FIELD}: found `{target}`; {_nearest(target, linear)}")
    return tuple(n for n in linear if lora.targets is None or any(_ends(n, target) for target in lora.targets))


def put_beside(network: Any, lora: Lora, modules: Sequence[str]) -> None:
    """Gives these modules peft's layers, on the device `meta`, and lets nothing else have a gradient."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(target_modules=list(modules), **_options(lora))
    inject_adapter_in_model(config, network, _NAME, low_cpu_mem_usage=True)


def write_adapters(adapters: Adapters, trained: Mapping[str, Tensor], folder: Path) -> None:
    """A folder that peft loads beside the base. trained: all that was, in fp32, by name."""
    from peft import LoraConfig

    heads = sorted(adapters.trained.difference(adapters.matrices))
    config = LoraConfig(
        task_type="SEQ_CLS" if heads else "CAUSAL_LM",
        base_model_name_or_path=adapters.base.removeprefix("hf://").removeprefix("file://"),
        inference_mode=True,
        modules_to_save=[name.removesuffix(".weight") for name in heads] or None,
        **_options(adapters.options),
    )
    said = config.to_dict()  # type: ignore[no-untyped-call]
    said["target_modules"] = sorted(adapters.modules)
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(said, indent=2, sort_keys=True))
    named = {name if name not in heads else PEFT + name: weight for name, weight in trained.items()}
    save_file(named, folder / "adapter_model.safetensors", {"format": "pt"})


def _options(lora: Lora) -> dict[str, Any]:
    """As peft calls them."""
    alpha = lora.alpha or lora.rank
    return {"r": lora.rank, "lora_alpha": alpha, "use_rslora": lora.rs_lora, "lora_dropout": 0.0}


def file_name(name: str) -> str:
    """The name in files of a parameter of a network with adapters."""
    if f".{_A}." in name or f".{_B}." in name:
        return PEFT + name.replace(f".{_NAME}.", ".")
    return name.replace(".base_layer.", ".")


@dataclass(frozen=True)
class NewAdapters:
    """Weights that change nothing yet: B is zero, A uniform within 1 / sqrt(inputs) by `seed`, as peft begins.

    shapes: of every matrix, by name.
    """

    shapes: Mapping[str, tuple[int, ...]]
    seed: int

    def read(self, name: str, begin: int, end: int) -> Tensor:
        shape = self.shapes[name]
        if f".{_B}." in name:
            return torch.zeros(end - begin)
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        bound = shape[1] ** -0.5
        return torch.empty(prod(shape)).uniform_(-bound, bound, generator=generator)[begin:end]


@dataclass(frozen=True)
class InFront:
    """Weights of which some names are read elsewhere."""

    names: frozenset[str]
    first: Weights
    others: Weights

    def read(self, name: str, begin: int, end: int) -> Tensor:
        return (self.first if name in self.names else self.others).read(name, begin, end)


def merged(adapters: Adapters, base: Weights, trained: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight of the base with what was trained beside it, in fp32 throughout; a head that was trained as it is.

    base: as it came. trained: all that was, by name.
    """
    if name in trained:
        return trained[name]
    shape, module = adapters.shapes[name], adapters.module_of(name)
    weight = base.read(name, 0, prod(shape)).view(shape)
    if module is None:
        return weight
    a, b = (trained[matrix] for matrix in adapters.pair(module))
    return weight.addmm_(b, a, alpha=adapters.options.scale)


def _linear_layers(network: Any) -> list[str]:
    """Names of those of the decoder's layers. Raises UnsupportedModelError."""
    layers = layers_of(network, network.config)
    place = next((name for name, module in network.named_modules() if module is layers), None)
    linear = [f"{place}.{name}" for name, module in layers.named_modules() if type(module) is nn.Linear]
    odd = next((f"{place}.{name}" for name, parameter in layers.named_parameters() if parameter.dim() > 2), None)
    if odd is not None or not linear:
        found = f"`{odd}`, which is no matrix (experts, a convolution)" if odd else "no linear layer"
        raise UnsupportedModelError(
            f"spec.training.lora: {network.config.model_type} has {found} in its layers; adapters are proven beside "
            "linear layers alone: leave lora out, or take a model without"
        )
    return linear


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _nearest(target: str, linear: Iterable[str]) -> str:
    """What to write instead: the nearest ends, else all of them."""
    ends = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    whole = [*ends, *dict.fromkeys(".".join(name.split(".")[-2:]) for name in linear)]
    near = difflib.get_close_matches(target, whole, n=_SHOWN, cutoff=0.6) or ends
    return f"the layers' linear maps end with {', '.join(f'`{end}`' for end in near)}: write one of them"
