"""The probe: on a model's own weights where they fit, else on a cut of it that has every kind of layer."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import tiny_tokenizer, write_model
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from alignment_api.contract.inputs import Model
from alignment_api.contract.status import ProbeReport
from alignment_api.derived.role_memory import GIB
from alignment_trainer.data.sources import Resolved
from alignment_trainer.model.cut import draw, plan_cut
from alignment_trainer.model.inspect import Inspection, Named, check_model, language_model
from alignment_trainer.model.mistakes import UnsupportedModelError
from alignment_trainer.model.probe import Figures, check_figures, probe
from alignment_trainer.process.errors import UserError

SIZES = {"vocab_size": 400, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}


def inspect(folder: Path, inspection: Inspection | None = None) -> Any:
    named = Named(Model(source=f"file://{folder}"), "spec.model")
    return check_model(named, Resolved(folder), [language_model], inspection)


def cut_of(family: str, **extra: Any) -> Any:
    config = AutoConfig.for_model(family, **(SIZES | extra))
    return plan_cut(config, lambda config: language_model(config).network)


def test_a_model_that_fits_is_probed_whole_and_one_that_does_not_by_a_cut(tmp_path):
    folder = write_model(tmp_path / "model")
    size = 4 * inspect(folder).parameters
    assert inspect(folder, Inspection(memory=int(1.3 * size))).probe.model == "whole"
    torch.manual_seed(0)
    many = LlamaConfig(
        **SIZES, intermediate_size=2048, num_hidden_layers=4, tie_word_embeddings=True, initializer_range=0.1
    )
    large = tmp_path / "large"
    LlamaForCausalLM(many).save_pretrained(large)
    tiny_tokenizer().save_pretrained(large)
    report = inspect(large, Inspection(memory=3 * 2**20))
    assert 4 * report.parameters > 3 * 2**20
    assert report.probe.model == "cut"
    assert max(report.probe.alone, report.probe.neighbour) < 1e-5


def test_weights_that_hardly_listen_are_not_taken_for_a_proof(tmp_path):
    """Random ones of a small deviation: every mask gives nearly the same numbers."""
    folder = write_model(tmp_path / "model")
    config = LlamaConfig.from_pretrained(folder)
    config.initializer_range = 1e-3
    LlamaForCausalLM(config).save_pretrained(folder)
    assert inspect(folder).probe.model == "cut"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("deviation", [1e-3, 0.1])
def test_weights_of_sixteen_bits_are_probed_in_fp32_whole_and_cut(tmp_path, dtype, deviation):
    """Rounding of sixteen bits is larger than what a wrong mask of a deep model may be."""
    folder = write_model(tmp_path / "model")
    config = LlamaConfig.from_pretrained(folder)
    config.initializer_range = deviation
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    report = inspect(folder).probe
    assert report.model == ("whole" if deviation > 0.01 else "cut")
    assert max(report.alone, report.neighbour) < 1e-5


def test_memory_that_holds_no_cut_is_named_with_what_would_do(tmp_path):
    folder = write_model(tmp_path / "model")
    with pytest.raises(
        UserError, match=r"spec\.roles\.prepare\.memory: 2 layers of llama .*; write 2Gi or more"
    ) as refused:
        inspect(folder, Inspection(memory=1000))
    assert refused.value.reason == "MemoryTooSmall"


def test_what_an_earlier_life_found_of_the_same_files_stands(tmp_path):
    folder = write_model(tmp_path / "model")
    former = inspect(folder).model_copy(update={"probe": ProbeReport(model="whole", alone=1.5e-7, neighbour=0)})
    assert inspect(folder, Inspection(former=former)).probe == former.probe
    other = former.model_copy(update={"fingerprint": "another"})
    assert inspect(folder, Inspection(former=other)).probe != former.probe


@pytest.mark.parametrize(
    ("family", "extra", "layers"),
    [
        ("llama", {"num_hidden_layers": 32}, 2),
        ("llama", {"num_hidden_layers": 1}, 1),
        ("gemma3_text", {"num_hidden_layers": 24, "sliding_window": 64, "head_dim": 32}, 6),
        (
            "qwen2",
            {"num_hidden_layers": 12, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 5},
            6,
        ),
        ("smollm3", {"num_hidden_layers": 12}, 4),
        ("deepseek_v3", {"num_hidden_layers": 9, "first_k_dense_replace": 3, "num_key_value_heads": 2}, 4),
        ("qwen3_moe", {"num_hidden_layers": 12, "decoder_sparse_step": 3, "num_experts": 4, "head_dim": 32}, 3),
    ],
)
def test_a_cut_keeps_one_layer_of_every_kind_in_their_order(family, extra, layers):
    """Gemma 3: every sixth is global; Qwen2: windows from the sixth; SmolLM3: every fourth without positions."""
    cut = cut_of(family, **extra)
    assert (cut.layers, cut.of_layers) == (layers, extra["num_hidden_layers"])
    assert cut.config.num_hidden_layers == layers


def test_a_cut_keeps_heads_and_positions_and_narrows_what_no_token_is_seen_through():
    cut = cut_of("llama", num_hidden_layers=40, intermediate_size=28672, vocab_size=128256, rope_theta=500000.0)
    assert (cut.config.hidden_size, cut.config.num_attention_heads, cut.config.num_key_value_heads) == (64, 2, 1)
    assert (cut.config.intermediate_size, cut.config.vocab_size) == (64, 1024)
    assert cut.bytes < 2**21
    matrices = 2 * 1024 * 64 + 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 64)
    assert cut.bytes == 4 * (matrices + 5 * 64)


def test_a_cut_of_a_model_of_70_billion_parameters_fits_beside_the_process_of_prepare():
    """Its weights alone are 280 GB in fp32."""
    cut = cut_of(
        "llama",
        **{"num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672, "vocab_size": 128256},
        **{"num_attention_heads": 64, "num_key_value_heads": 8},
    )
    assert cut.bytes * 1.2 < 2.5 * GIB


def test_dropout_shows_in_the_probe():
    """A rate that the config does not name, for example, would be found so."""
    config = LlamaConfig(**SIZES, intermediate_size=96, num_hidden_layers=2, attention_dropout=0.3)
    built = language_model(config)
    assert probe(draw(built.network), built.scorer).worst > 0.01


def test_a_model_whose_branches_see_each_other_is_refused_with_the_figures(monkeypatch):
    """Here by attention that forgets the layout: every token attends to all before it."""
    from torch.nn.functional import scaled_dot_product_attention
    from transformers import AttentionInterface

    def forgetful(module, query, key, value, mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return scaled_dot_product_attention(query, keys, values, is_causal=True, scale=scaling).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "alignment_branches", forgetful)
    built = language_model(LlamaConfig(**SIZES, intermediate_size=96, num_hidden_layers=2))
    figures = probe(draw(built.network), built.scorer)
    assert figures.neighbour > 0.1
    with pytest.raises(
        UnsupportedModelError, match=rf"llama: .* off by {figures.alone:.2g} .* by {figures.neighbour:.2g}"
    ):
        check_figures(figures, "llama", "its own weights")


@pytest.mark.parametrize("bad", [2e-3, float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["alone", "neighbour"])
def test_figures_over_the_tolerance_are_refused_and_those_of_rounding_are_not(place, bad):
    fine = {"alone": 9e-4, "neighbour": 0.0, "reach": 1.0}
    check_figures(Figures(**fine), "llama", "its own weights")
    with pytest.raises(UnsupportedModelError, match=r"at most 0\.001 is rounding"):
        check_figures(Figures(**(fine | {place: bad})), "llama", "its own weights")


def test_the_report_is_small_and_survives_json(tmp_path):
    """It stands in the manifest of the prepared data and in the termination message, which has 4096 bytes."""
    report = inspect(write_model(tmp_path / "model"))
    written = report.model_dump_json(by_alias=True)
    assert len(written) < 600
    assert json.loads(written)["probe"]["model"] == "whole"
    assert type(report).model_validate_json(written) == report
    assert copy.deepcopy(report) == report
