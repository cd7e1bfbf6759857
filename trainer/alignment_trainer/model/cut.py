"""A small model of the same architecture: what stands for a model too large to be loaded where it is proven.

Layers are cut from the end, so that rules that count them (every sixth is global, the first three are dense) still
hold, and as many stay as it takes to have one of every kind. Vocabulary and inner width of the MLPs, which no token
sees another through, are narrowed. Heads, head sizes, positions, windows and scales stay what they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

_VOCABULARY, _WIDTH = 1024, 64
_WIDTHS = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "ffn_dim", "n_inner")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
LEAST_LAYERS = 2
"""So that what a layer makes of other tokens passes through another one."""
FP32_BYTES = 4

Build = Callable[[Any], Any]
"""Makes transformers' model of a config."""


@dataclass(frozen=True)
class Cut:
    """config: of the smaller model. layers: that it has, of so many. bytes: of its weights in fp32."""

    config: Any
    layers: int
    of_layers: int
    bytes: int


def plan_cut(config: Any, build: Build) -> Cut:
    """The smallest model that has every kind of layer of the config's. No memory is taken."""
    with torch.device("meta"):
        whole = build(copy.deepcopy(config))
    kinds = [_kind(layer, config, number) for number, layer in enumerate(layers_of(whole, config))]
    count = min(len(kinds), max(LEAST_LAYERS, _first_with_all(kinds)))
    smaller = _smaller(config, count, len(kinds))
    with torch.device("meta"):
        network = build(copy.deepcopy(smaller))
    return Cut(smaller, count, len(kinds), FP32_BYTES * sum(p.numel() for p in network.parameters()))


def draw(network: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every matrix numbers of standard deviation 1 / sqrt(inputs): states and scores of the size of 1.

    With the 0.02 of many configs attention is all but uniform, and a wrong mask would hardly show.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
    return network


def layers_of(network: nn.Module, config: Any) -> nn.ModuleList:
    """The body's stack: the list of modules that has as many as the config says; empty where there is none."""
    count = next(getattr(config, name) for name in _LAYERS if hasattr(config, name))
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList) and len(module) == count]
    return lists[0] if lists else nn.ModuleList()


def _kind(layer: nn.Module, config: Any, number: int) -> object:
    """What tells a layer from others: its modules with their sizes, their settings, and the config's entries for it."""
    settings = tuple(
        (name, value)
        for module in layer.modules()
        for name, value in sorted(vars(module).items())
        if isinstance(value, bool | str | float | int | None) and "idx" not in name and "layer_id" not in name
    )
    return repr(layer), settings, tuple(str(entries[number]) for _, entries in _per_layer(config))


def _per_layer(config: Any) -> Iterator[tuple[str, list[Any]]]:
    """Fields with an entry for each layer: layer_types, no_rope_layers and the like."""
    count = next((getattr(config, name) for name in _LAYERS if hasattr(config, name)), None)
    for name, value in sorted(vars(config).items()):
        if isinstance(value, list) and len(value) == count:
            yield name, value


def _first_with_all(kinds: list[object]) -> int:
    """How many from the start have one of every kind."""
    return 1 + max((kinds.index(kind) for kind in kinds), default=0)


def _smaller(config: Any, count: int, whole: int) -> Any:
    smaller = copy.deepcopy(config)
    for name, entries in list(_per_layer(config)):
        setattr(smaller, name, entries[:count])
    for name in _LAYERS:
        if name in vars(smaller) and getattr(smaller, name) == whole:
            setattr(smaller, name, count)
    for name in (*_WIDTHS, "vocab_size"):
        least = _VOCABULARY if name == "vocab_size" else _WIDTH
        if isinstance(getattr(smaller, name, None), int):
            setattr(smaller, name, min(getattr(smaller, name), least))
    for name in _TOKENS:
        setattr(smaller, name, None)
    return smaller
