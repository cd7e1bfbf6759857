import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import Setting, tiny_engine, tiny_llama, tiny_qwen2
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from alignment_trainer.checkpoint.export import export_model
from alignment_trainer.checkpoint.output import FolderOutput
from alignment_trainer.model.heads import scorer
from alignment_trainer.model.load import LoadedModel, load_model
from alignment_trainer.model.mistakes import UnsupportedModelError
from alignment_trainer.model.weights import FolderWeights

IDS = torch.tensor([[1, 5, 9, 3, 2]])


def words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(97)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1", unk_token="w0")


def language_model(causal) -> LoadedModel:
    return LoadedModel(causal, words(), scorer(causal), FolderWeights(causal, {}, causal.state_dict()))


def export(causal, output, precision):
    export_model(language_model(causal), tiny_engine(Setting(), causal), FolderOutput(output), precision)


@pytest.mark.parametrize("model", [tiny_llama, tiny_qwen2])
def test_an_fp32_export_has_the_logits_of_the_trained_model(tmp_path, model):
    causal = model()
    export(causal, tmp_path, "fp32")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded(IDS).logits, causal.eval()(IDS).logits)


def test_a_bf16_export_has_the_rounded_weights_and_says_so(tmp_path):
    causal = tiny_llama()
    export(causal, tmp_path, "bf16")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for (name, a), (_, b) in zip(loaded.named_parameters(), causal.named_parameters(), strict=True):
        assert torch.equal(a, b.bfloat16()), name


def test_an_export_brings_its_tokenizer_and_can_be_trained_again(tmp_path):
    export(tiny_llama(), tmp_path, "fp32")
    assert AutoTokenizer.from_pretrained(tmp_path / "model").encode("w3") == [3]
    assert load_model(tmp_path / "model").tokenizer.eos_token == "w1"


def test_everybody_may_read_an_export(tmp_path):
    export(tiny_llama(), tmp_path, "fp32")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o644}


def test_an_export_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync

    def noted(descriptor):
        flushed.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    export(tiny_llama(), tmp_path, "fp32")
    partial = tmp_path / ".model.partial"
    assert {partial, *(partial / path.name for path in (tmp_path / "model").iterdir())} <= set(flushed)
    assert flushed[-1] == tmp_path


def test_an_export_replaces_the_one_before_and_leaves_nothing_else(tmp_path):
    export(tiny_llama(seed=1), tmp_path, "fp32")
    causal = tiny_llama(seed=2)
    export(causal, tmp_path, "fp32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.lm_head.weight, causal.lm_head.weight)


def test_a_folder_without_a_model_says_what_belongs_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json; spec\.model\.source must be"):
        load_model(tmp_path)


def test_a_model_with_soft_capped_logits_is_refused_by_name():
    causal = tiny_llama()
    causal.config.final_logit_softcapping = 30.0
    with pytest.raises(UnsupportedModelError, match="final_logit_softcapping"):
        scorer(causal)


def test_experts_are_exported_under_the_names_that_they_came_with(tmp_path):
    """transformers joins them in memory; what else reads the folder does not know the joined names."""
    config = MixtralConfig(
        **{
            "vocab_size": 97,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_local_experts": 3,
        },
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": None},
    )
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    words().save_pretrained(tmp_path / "base")
    model = load_model(tmp_path / "base")
    export_model(model, tiny_engine(Setting(), model.network), FolderOutput(tmp_path), "fp32")
    base, exported = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "model"))
    assert "model.layers.1.block_sparse_moe.experts.2.w3.weight" in exported
    assert exported.keys() == base.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in base.items())
