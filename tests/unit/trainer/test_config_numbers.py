"""Numbers of a model's config that cannot be meant: refused by name and figure, not taken for something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import write_model

from alignment_api.contract.inputs import Model
from alignment_api.derived.decoder import shape_in
from alignment_trainer.data.sources import Resolved
from alignment_trainer.model.config_numbers import check_numbers
from alignment_trainer.model.inspect import Named, check_model, language_model
from alignment_trainer.model.mistakes import InvalidModelError
from alignment_trainer.process.errors import UserError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "sliding_window": None,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def rotary(**numbers: Any) -> dict[str, Any]:
    return {"rope_parameters": LLAMA["rope_parameters"] | numbers}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_position_embeddings": 0}, "`max_position_embeddings` is 0; it must be a whole number of at least 1"),
        ({"max_position_embeddings": -1}, "`max_position_embeddings` is -1;"),
        ({"max_position_embeddings": 2048.5}, "`max_position_embeddings` is 2048.5;"),
        ({"max_position_embeddings": None}, "`max_position_embeddings` is null;"),
        ({"max_position_embeddings": True}, "`max_position_embeddings` is true;"),
        ({"n_positions": 0}, "`n_positions` is 0;"),
        ({"sliding_window": 0}, "`sliding_window` is 0; it must be a whole number of at least 1, or null"),
        ({"sliding_window": -1}, "`sliding_window` is -1;"),
        ({"vocab_size": 0}, "`vocab_size` is 0;"),
        ({"num_hidden_layers": 0}, "`num_hidden_layers` is 0;"),
        ({"hidden_size": -64}, "`hidden_size` is -64;"),
        ({"num_attention_heads": 0}, "`num_attention_heads` is 0;"),
        ({"num_key_value_heads": 3}, "`num_key_value_heads` is 3, which does not divide the 4 of"),
        ({"num_local_experts": -8}, "`num_local_experts` is -8;"),
        ({"intermediate_size": [128, 0]}, "`intermediate_size` is a list;"),
        ({"head_dim": 0}, "`head_dim` is 0;"),
        ({"rms_norm_eps": 0}, "`rms_norm_eps` is 0; it must be a finite number above 0"),
        ({"rope_theta": float("inf")}, "`rope_theta` is Infinity;"),
        (rotary(factor="2"), "`rope_parameters.factor` is a string;"),
        (rotary(factor=-2.0), "`rope_parameters.factor` is -2.0;"),
        (rotary(original_max_position_embeddings=0), "`rope_parameters.original_max_position_embeddings` is 0;"),
        (rotary(full_attention={"factor": 0}), "`rope_parameters.full_attention.factor` is 0;"),
        ({"rope_scaling": {"factor": float("nan")}}, "`rope_scaling.factor` is NaN;"),
        ({"text_config": {"max_position_embeddings": 0}}, "`text_config.max_position_embeddings` is 0;"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused_by_name_and_figure(fields: dict[str, Any], words: str) -> None:
    check_numbers(LLAMA)
    with pytest.raises(InvalidModelError) as refused:
        check_numbers(LLAMA | fields)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_local_experts": 0, "num_experts_per_tok": 0},
        {"intermediate_size": [128, 256], "num_key_value_heads": [1, 2]},
        {"sliding_window": 4096, "rope_scaling": None},
        {"vision_config": {"sliding_window": 0}},
    ],
)
def test_what_published_configs_say_is_taken(fields: dict[str, Any]) -> None:
    check_numbers(LLAMA | fields)


def test_a_limit_of_no_positions_is_not_taken_for_none(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 0}))
    with pytest.raises(UserError, match=r"spec\.model\.source: .*`max_position_embeddings` is 0;"):
        check_model(Named(Model(source=f"file://{folder}"), "spec.model"), Resolved(folder), [language_model])


@pytest.mark.parametrize("name", ["num_attention_heads", "hidden_size", "vocab_size", "num_hidden_layers"])
def test_no_memory_is_reckoned_of_a_shape_that_cannot_be(name: str) -> None:
    assert shape_in(LLAMA) is not None
    assert shape_in(LLAMA | {name: 0}) is None
