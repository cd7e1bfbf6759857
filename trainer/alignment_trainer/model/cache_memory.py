"""Does a rollout server's memory of keys and values hold one sequence? Asked before a GPU starts."""

from __future__ import annotations

import logging
import math
from typing import Any

from alignment_api.contract.quantity import quantity_value
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.role_memory import GIB, KV_CACHE_GIB
from alignment_trainer.process.errors import UserError

log = logging.getLogger(__name__)

_ELEMENT_BYTES = {"bf16": 2, "fp32": 4}
_FIELD = "spec.roles.rollout.kvCacheMemory"
_MIB = 1024**2


def bytes_per_token(config: Any, precision: str) -> int:
    """Keys and values of one token: 2 x layers x key-value heads x head dimension x bytes of an element."""
    heads = config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * key_value_heads * head_dim * _ELEMENT_BYTES[precision])


def check_cache_memory(spec: AlignmentJobSpec, config: Any) -> None:
    """Raises UserError where the memory that the spec asks for does not hold one sequence of training.maxLength.

    Where it asks for none a GPU gives what weights leave, and a CPU KV_CACHE_GIB; this process cannot tell which it
    will be, so there it warns.
    """
    each, asked = bytes_per_token(config, spec.training.precision), spec.roles.rollout.kv_cache_memory
    longest, memory = spec.training.max_length, int(quantity_value(asked)) if asked else KV_CACHE_GIB * GIB
    if each * longest <= memory:
        return
    least = math.ceil(each * longest / _MIB)
    message = (
        f"{_FIELD}: {asked or f'{KV_CACHE_GIB}Gi'} hold {memory // each} tokens of {each} bytes, and a sequence has up "
        f"to {longest} (spec.training.maxLength); write {least}Mi or more, or lower maxLength"
    )
    if asked is not None:
        raise UserError("CacheTooSmall", message)
    log.warning("on servers without GPUs: %s", message)
