"""A model, as far as its memory follows from it: counted weights and the widths of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from alignment_api.contract.status import ModelReport, ModelShape

_WEIGHTS_OF_A_CUBE = 12 * 128**2
"""Weights of a usual decoder over the cube of its layers: 12 layers hidden^2 (Kaplan et al. 2020), 128 wide a layer."""
_NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocabulary": ("vocab_size",),
}
"""What every config says -> how families call it."""


@dataclass(frozen=True)
class Decoder:
    """parameters: all of its weights. has_head: whether it says log-probs, and not a number."""

    parameters: int
    shape: ModelShape
    has_head: bool = True

    @classmethod
    def of(cls, parameters: int, shape: ModelShape | None = None) -> Decoder:
        """With the shape that is usual at this size, where nobody has looked at it."""
        return cls(parameters, shape or usual_shape(parameters))

    @classmethod
    def reported(cls, report: ModelReport) -> Decoder:
        """As `prepare` has found it."""
        return cls.of(report.parameters, report.shape)

    @property
    def in_layers(self) -> int:
        """Weights beside embedding and head."""
        return self.parameters - self.shape.embeddings

    @property
    def head(self) -> int:
        """Weights of the language-model head, its own or the embedding's."""
        return self.shape.vocabulary * self.shape.hidden if self.has_head else 0


def usual_shape(parameters: int) -> ModelShape:
    """Of a decoder of that size: four heads share keys, the MLP is gated."""
    layers = max(1, round((parameters / _WEIGHTS_OF_A_CUBE) ** (1 / 3)))
    hidden = 128 * layers
    vocabulary = min(128_000, parameters // (4 * hidden))
    return ModelShape(
        layers=layers,
        hidden=hidden,
        queries=hidden,
        keys=hidden // 4,
        inner=hidden * 8 // 3,
        vocabulary=vocabulary,
        embeddings=vocabulary * hidden,
        tied=True,
    )


def shape_in(config: Mapping[str, Any]) -> ModelShape | None:
    """By a model's config.json; None where it does not say enough."""
    config = config.get("text_config") or config
    found: dict[str, Any] = {
        name: next((config[key] for key in keys if key in config), None) for name, keys in _NAMES.items()
    }
    if not all(isinstance(value, int) and value > 0 for value in found.values()):
        return None
    layers, hidden, heads, vocabulary = found.values()
    head_size = config.get("head_dim") or hidden // heads
    tied = bool(config.get("tie_word_embeddings"))
    return ModelShape(
        layers=layers,
        hidden=hidden,
        queries=heads * head_size,
        keys=(config.get("num_key_value_heads") or heads) * head_size,
        inner=_inner_width(config, hidden),
        vocabulary=vocabulary,
        embeddings=vocabulary * hidden * (1 if tied else 2),
        tied=tied,
    )


def _inner_width(config: Mapping[str, Any], hidden: int) -> int:
    """Of the experts that a token passes through, where there are any."""
    each, experts = config.get("moe_intermediate_size"), config.get("num_experts_per_tok")
    if each and experts:
        return int(each * experts + (config.get("shared_expert_intermediate_size") or 0))
    dense = next((config[key] for key in ("intermediate_size", "ffn_dim", "n_inner") if config.get(key)), 4 * hidden)
    return int(dense) * (experts or 1)
