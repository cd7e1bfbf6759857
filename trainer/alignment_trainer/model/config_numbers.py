"""The numbers of a model's config.json: what is none, or cannot be meant, is refused before anything is computed of it.

transformers takes most of them as they are: a `max_position_embeddings` of 0 would be no limit, a window of -1 one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from alignment_trainer.data.rows import kind_of
from alignment_trainer.model.mistakes import InvalidModelError

_POSITIONS = ("max_position_embeddings", "n_positions", "original_max_position_embeddings")
_WIDTHS = (
    *("vocab_size", "hidden_size", "n_embd", "d_model"),
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("num_attention_heads", "n_head", "n_heads"),
)
_MAY_BE_NULL = (*("num_key_value_heads", "head_dim", "intermediate_size", "n_inner", "ffn_dim", "sliding_window"),)
"""Of these null says that there is none, or that it follows from the others. Some families list one of each layer."""
_MAY_BE_NONE = (
    *("num_local_experts", "num_experts", "num_experts_per_tok"),
    *("moe_intermediate_size", "shared_expert_intermediate_size"),
)
"""Of experts a dense model has 0."""
_REAL = (
    *("rope_theta", "rope_local_base_freq", "factor", "low_freq_factor", "high_freq_factor"),
    *("beta_fast", "beta_slow", "partial_rotary_factor", "rotary_pct", "attention_factor"),
    *("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"),
)
_ROTARY = ("rope_parameters", "rope_scaling")


def check_numbers(config: Mapping[str, Any]) -> None:
    """Raises InvalidModelError with the field and the figure. config: as config.json has it."""
    for field, value in _numbers(config, ""):
        name = field.rpartition(".")[2]
        check, wanted = _CHECKS[name]
        if not check(value):
            raise InvalidModelError(f"config.json: `{field}` is {_told(value)}; it must be {wanted}: copy it again")
    for part in _parts(config):
        _check_heads(part)


def _numbers(config: object, prefix: str) -> Iterator[tuple[str, object]]:
    """Every number of a known name that stands in the config, with dots into its parts."""
    if not isinstance(config, Mapping):
        return
    for name, value in config.items():
        is_part = isinstance(value, Mapping) and (prefix.startswith(_ROTARY) or name in ("text_config", *_ROTARY))
        if is_part:
            yield from _numbers(value, f"{prefix}{name}.")
        elif name in _CHECKS:
            yield f"{prefix}{name}", value


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield config
    if isinstance(config.get("text_config"), Mapping):
        yield config["text_config"]


def _check_heads(config: Mapping[str, Any]) -> None:
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(shared, int) and heads % shared:
        raise InvalidModelError(
            f"config.json: `num_key_value_heads` is {shared}, which does not divide the {heads} of "
            "`num_attention_heads`: copy it again"
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_count_or_list(value: object) -> bool:
    return all(map(_is_count, value)) and bool(value) if isinstance(value, list) else _is_count(value)


def _is_count_or_none(value: object) -> bool:
    return _is_count(value) or (value == 0 and not isinstance(value, bool))


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _or_null(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


_COUNT = "a whole number of at least 1"
_CHECKS: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys((*_POSITIONS, *_WIDTHS), (_is_count, _COUNT)),
    **dict.fromkeys(_MAY_BE_NULL, (_or_null(_is_count_or_list), f"{_COUNT}, or null")),
    **dict.fromkeys(_MAY_BE_NONE, (_or_null(_is_count_or_none), "a whole number, or null")),
    **dict.fromkeys(_REAL, (_or_null(_is_real), "a finite number above 0")),
}


def _told(value: object) -> str:
    """A number as it stands there; of anything else what it is, for it may be anybody's."""
    is_number = value is None or isinstance(value, int | float)
    return json.dumps(value) if is_number else kind_of(value)
