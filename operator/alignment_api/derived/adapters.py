"""How many numbers a job trains: a whole model, or adapters beside its layers (training.lora)."""

from __future__ import annotations

from collections.abc import Mapping

from alignment_api.contract.spec import Lora, Training
from alignment_api.contract.status import ModelShape
from alignment_api.derived.decoder import Decoder

_EACH = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear maps of a usual layer, by the ends of their names."""


def trained_parameters(training: Training, model: Decoder) -> int:
    """Numbers that have a gradient and moments. A value model's head is trained with its adapters."""
    if training.lora is None:
        return model.parameters
    return adapter_parameters(training.lora, model.shape) + (0 if model.has_head else model.shape.hidden)


def adapter_parameters(lora: Lora, shape: ModelShape) -> int:
    """Numbers of all adapters, at most: a map of another name is taken for the widest."""
    widths = _widths(shape)
    ends = _EACH if lora.targets is None else sorted({target.rpartition(".")[2] for target in lora.targets})
    widest = max(widths.values())
    return shape.layers * lora.rank * sum(widths.get(end, widest) for end in ends)


def _widths(shape: ModelShape) -> Mapping[str, int]:
    """Inputs and outputs together of a layer's maps, some of which families join."""
    hidden, queries, keys, inner = shape.hidden, shape.queries, shape.keys, shape.inner
    return {
        **dict.fromkeys(("q_proj", "o_proj", "out_proj"), hidden + queries),
        **dict.fromkeys(("k_proj", "v_proj"), hidden + keys),
        **dict.fromkeys(("gate_proj", "up_proj", "down_proj", "fc1", "fc2"), hidden + inner),
        "qkv_proj": hidden + queries + 2 * keys,
        "gate_up_proj": hidden + 2 * inner,
    }
