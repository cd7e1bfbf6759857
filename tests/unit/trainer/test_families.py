"""Every family that is known to follow packed rows does; those that do not are refused, with figures or words."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_tokenizer
from transformers import AutoConfig

from alignment_trainer.model.config import turn_off_noise
from alignment_trainer.model.cut import draw
from alignment_trainer.model.description import check_description
from alignment_trainer.model.families import KNOWN_GOOD
from alignment_trainer.model.inspect import language_model, load_tokenizer, value_model
from alignment_trainer.model.mistakes import UnsupportedModelError
from alignment_trainer.model.probe import LEAST_REACH, TOLERANCE, probe
from alignment_trainer.model.proof import prove

MUCH = 2**30
SHAPE: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What most families call their sizes; each takes what it knows."""
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_ctx": 128}
WINDOW = {"sliding_window": 64}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = {
    **{"num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    **{
        "v_head_dim": 8,
        "head_dim": 4,
        "n_routed_experts": 8,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 24},
}
HEADS = {"head_dim": 8}

GOOD: dict[str, dict[str, Any]] = {
    **{"llama": {}, "qwen2": {}, "qwen3": HEADS, "mistral": {}, "phi3": {}, "gemma": HEADS},
    **{
        "gemma3_text": HEADS | WINDOW,
        "smollm3": {"no_rope_layers": [1, 0, 1]},
        "granite": {"residual_multiplier": 0.4},
    },
    **{"cohere2": WINDOW | {"logit_scale": 1.0}, "olmo": {"clip_qkv": 0.7}, "olmo2": {}, "olmo3": WINDOW},
    **{"starcoder2": {}, "glm": HEADS, "glm4": HEADS, "helium": HEADS, "ernie4_5": HEADS, "exaone4": WINDOW},
    **{"seed_oss": HEADS, "arcee": {}, "apertus": {}, "hunyuan_v1_dense": HEADS, "diffllama": {}, "persimmon": {}},
    **{"bitnet": {}, "gpt2": GPT, "gpt_neox": {}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32}, "biogpt": {}},
    **{"mixtral": {"num_local_experts": 4}, "qwen3_moe": EXPERTS | HEADS},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 24},
    **{"deepseek_v2": LATENT, "deepseek_v3": LATENT},
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2 with windows": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, **WINDOW}),
    "llama without tied embeddings": ("llama", {"tie_word_embeddings": False, "attention_bias": True}),
    "llama with scaled positions": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
    ),
}
LINEAR = {"layer_types": ["linear_attention", "linear_attention", "full_attention"]}
WRONG: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss": ("gpt_oss", HEADS | WINDOW | {"num_local_experts": 4}),
    "falcon": ("falcon", {}),
    "falcon with alibi": ("falcon", {"alibi": True}),
    "bloom": ("bloom", {"n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}),
    "gpt_neo": ("gpt_neo", {"num_hidden_layers": 2, "attention_types": [[["global", "local"], 1]]}),
    "openai-gpt": ("openai-gpt", GPT),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}),
    "qwen3_next": ("qwen3_next", HEADS | EXPERTS | LINEAR),
    "minimax": ("minimax", {"num_local_experts": 4}),
    "bamba": ("bamba", {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16}),
    "jamba": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8}),
    "mamba": ("mamba", {"state_size": 8}),
    "mamba2": ("mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 2}),
    "rwkv": ("rwkv", {"attention_hidden_size": 32}),
}
RAISING: dict[str, dict[str, Any]] = {"stablelm": {}, "nemotron": {}, "doge": {}}
REFUSED_AS_BUILT: dict[str, dict[str, Any]] = {
    "gemma2": HEADS | WINDOW,
    "nanochat": {},
    "granite": {"logits_scaling": 8.0},
    "cohere": {"logit_scale": 0.0625},
    "phi": {},
    "gptj": GPT | {"rotary_dim": 4},
    "codegen": GPT | {"rotary_dim": 4},
}


def config_of(family: str, extra: dict[str, Any]) -> Any:
    """As prepare reads one: GPT-2's and others' default dropout is off."""
    config = AutoConfig.for_model(family, **(SHAPE | extra))
    turn_off_noise(config)
    return config


def test_every_family_of_the_table_is_tried_here():
    assert sorted(GOOD) == sorted(KNOWN_GOOD)


@pytest.mark.parametrize("case", [*GOOD, *VARIANTS])
def test_a_good_family_computes_over_packed_rows_what_transformers_computes_of_texts_alone(case):
    config = config_of(*VARIANTS.get(case, (case, GOOD.get(case, {}))))
    built = language_model(copy.deepcopy(config))
    figures = probe(draw(built.network), built.scorer)
    assert figures.worst < TOLERANCE / 50
    assert figures.reach > LEAST_REACH
    proof = prove(Path("nowhere"), config, language_model, 10**12, MUCH)
    assert proof.model == "cut"
    assert max(proof.alone, proof.neighbour) < TOLERANCE / 50


@pytest.mark.parametrize("family", GOOD)
def test_what_describes_a_good_family_is_written_and_read_back_the_same(family, tmp_path):
    """Its tokenizer is what transformers makes of the files beside a config of that family."""
    config = config_of(family, GOOD[family])
    config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with torch.device("meta"):
        built = language_model(config)
    check_description(built.network, {}, load_tokenizer(f"file://{tmp_path}", tmp_path), tmp_path)


@pytest.mark.parametrize("case", WRONG)
def test_a_family_that_passes_state_or_drops_a_part_of_its_attention_is_refused_with_figures(case):
    family, extra = WRONG[case]
    with pytest.raises(UnsupportedModelError) as refused:
        prove(Path("nowhere"), config_of(family, extra), language_model, 10**12, MUCH)
    assert f"{config_of(family, extra).model_type}: over packed rows it does not compute" in str(refused.value)
    assert "choose a model of a family that is known to work: llama" in str(refused.value)


@pytest.mark.parametrize("family", RAISING)
def test_a_family_that_cannot_take_packed_rows_is_refused_with_its_words(family):
    with pytest.raises(UnsupportedModelError, match=rf"{family}: it cannot be computed over packed rows \(\w+: \w+"):
        prove(Path("nowhere"), config_of(family, RAISING[family]), language_model, 10**12, MUCH)


@pytest.mark.parametrize("family", REFUSED_AS_BUILT)
def test_a_head_that_changes_its_logits_is_refused_as_it_is_built(family):
    with pytest.raises(UnsupportedModelError, match=rf"{family}: (`\w+` changes|needs a language-model head)"):
        language_model(config_of(family, REFUSED_AS_BUILT[family]))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3", "mixtral", "gpt2"])
def test_a_good_family_scores_packed_texts_as_transformers_scores_them_alone(family):
    config = config_of(family, GOOD[family])
    built = value_model(copy.deepcopy(config))
    figures = probe(draw(built.network), built.scorer)
    assert figures.worst < TOLERANCE / 50
    assert figures.reach > LEAST_REACH


def test_soft_caps_of_attention_are_refused_for_values_too():
    """Their classifier has no cap on logits, which refuses the language model; the one within attention is dropped."""
    config = config_of("gemma2", HEADS | WINDOW | {"attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 1})
    with pytest.raises(UnsupportedModelError, match="gemma2: over packed rows it does not compute"):
        prove(Path("nowhere"), config, value_model, 10**12, MUCH)
