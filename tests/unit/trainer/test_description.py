"""What will be written after training is tried before it: tokenizer, special tokens, generation config."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_tokenizer, write_model
from transformers import AutoModelForCausalLM, GenerationConfig

from alignment_api.contract.inputs import Model
from alignment_trainer.data.sources import Resolved
from alignment_trainer.model.description import write_description
from alignment_trainer.model.inspect import Named, check_model, language_model
from alignment_trainer.model.load import load_model
from alignment_trainer.process.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


def inspect(folder: Path) -> Any:
    return check_model(Named(Model(source=f"file://{folder}"), "spec.model"), Resolved(folder), [language_model])


def write(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | fields))


def test_a_tokenizer_larger_than_the_embedding_is_refused_with_both_numbers(folder):
    longer = tiny_tokenizer()
    longer.add_tokens(["apples", "bridges", "clouds"])
    longer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"ids up to 402 \(`clouds`\), its embedding has 400 rows \(0 to 399\)"):
        inspect(folder)


@pytest.mark.parametrize(
    ("file", "field", "value", "found"),
    [
        ("config.json", "eos_token_id", 400, 400),
        ("config.json", "bos_token_id", 128000, 128000),
        ("config.json", "pad_token_id", -1, -1),
        ("generation_config.json", "eos_token_id", [2, 7, 401], 401),
    ],
)
def test_a_special_token_outside_the_embedding_is_refused_by_file_and_field(folder, file, field, value, found):
    write(folder / file, **{field: value})
    with pytest.raises(UserError, match=rf"(`{field}` is {found}, the embedding has rows 0 to 399|cannot be used)"):
        inspect(folder)


def test_sampling_options_of_a_greedy_generation_config_are_left_out_and_said(folder, caplog, tmp_path):
    write(folder / "generation_config.json", do_sample=False, temperature=0.9, top_p=0.6, top_k=20, length_penalty=0.5)
    with caplog.at_level(logging.INFO):
        inspect(folder)
    assert "temperature 0.9, top_p 0.6, top_k 20, length_penalty 0.5, which does nothing there" in caplog.text
    model = load_model(folder)
    write_description(model.network, model.noise, model.tokenizer, tmp_path, "float32")
    written = GenerationConfig.from_pretrained(tmp_path)
    assert (written.do_sample, written.temperature, written.length_penalty) == (False, None, None)
    assert written.eos_token_id == model.tokenizer.eos_token_id


def test_sampling_options_that_are_read_stay(folder, tmp_path):
    write(folder / "generation_config.json", do_sample=True, temperature=0.9, top_p=0.6)
    inspect(folder)
    model = load_model(folder)
    write_description(model.network, model.noise, model.tokenizer, tmp_path, "bfloat16")
    written = GenerationConfig.from_pretrained(tmp_path)
    assert (written.do_sample, written.temperature, written.top_p) == (True, 0.9, 0.6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_return_sequences": 3}, r"generation_config\.json .*num_return_sequences"),
        ({"output_scores": True}, r"generation_config\.json .*`output_scores`"),
        ({"max_new_tokens": -4}, r"generation_config\.json .*max_new_tokens"),
        ({"cache_implementation": "unheard"}, r"generation_config\.json .*cache_implementation"),
    ],
)
def test_what_cannot_be_written_is_refused_by_file_and_field(folder, fields, words):
    write(folder / "generation_config.json", **fields)
    with pytest.raises(UserError, match=words) as refused:
        inspect(folder)
    assert refused.value.reason == "InvalidModel"


def test_the_written_description_is_that_of_the_model(folder, tmp_path):
    model = load_model(folder)
    write_description(model.network, model.noise, model.tokenizer, tmp_path, "bfloat16")
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert AutoModelForCausalLM.from_config(model.network.config).config.hidden_size == config["hidden_size"]
