"""Bytes of keys and values by hand."""

import logging
from typing import Any

import pytest
from transformers import LlamaConfig

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_trainer.model.cache_memory import bytes_per_token, check_cache_memory
from alignment_trainer.process.errors import UserError

LLAMA_3_8B = LlamaConfig(
    hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=None
)


def spec(memory: str | None, max_length: int) -> AlignmentJobSpec:
    rollout: dict[str, Any] = {"kvCacheMemory": memory} if memory else {}
    return AlignmentJobSpec.model_validate(
        {
            "model": {"source": "file:///m"},
            "data": {"source": "file:///d.jsonl"},
            "algorithm": {"grpo": {"rewards": [{"function": {"length": {"maxTokens": 9}}}]}},
            "training": {"maxLength": max_length, "precision": "bf16"},
            "roles": {"rollout": rollout},
        }
    )


def test_a_token_of_llama_3_8b_takes_128_kib_in_bf16() -> None:
    """2 x 32 layers x 8 heads x 128 x 2 bytes."""
    assert bytes_per_token(LLAMA_3_8B, "bf16") == 131_072
    assert bytes_per_token(LLAMA_3_8B, "fp32") == 262_144


def test_memory_for_one_sequence_is_enough_and_a_token_more_is_refused() -> None:
    check_cache_memory(spec("1Gi", 8192), LLAMA_3_8B)
    with pytest.raises(UserError, match=r"1Gi hold 8192 tokens of 131072 bytes.* up to 8193 .*; write 1025Mi or more"):
        check_cache_memory(spec("1Gi", 8193), LLAMA_3_8B)


def test_memory_that_is_not_asked_for_depends_on_the_pool_and_is_only_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        check_cache_memory(spec(None, 8193), LLAMA_3_8B)
    assert "on servers without GPUs: spec.roles.rollout.kvCacheMemory: 1Gi hold 8192 tokens" in caplog.text
