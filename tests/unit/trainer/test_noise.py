"""Dropout is off, whatever the config says; the exported config keeps what it said."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch
from tests.tiny import write_model
from transformers import Gemma3Config, GPT2Config, MixtralConfig

from alignment_api.contract.inputs import Model
from alignment_trainer.algorithms.dpo import dpo_loss
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.packing import pack, pack_whole
from alignment_trainer.data.sources import Resolved
from alignment_trainer.model.config import turn_off_noise, with_noise
from alignment_trainer.model.description import write_description
from alignment_trainer.model.inspect import Named, check_model, language_model
from alignment_trainer.model.load import load_model, load_value_model

GROUPS = [PromptGroup((5, 6, 7), ((8, 9, 10), (11, 12))), PromptGroup((13, 14), ((15,), (16, 17, 18)))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose config drops 30% of its attention."""
    folder = write_model(tmp_path / "model")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"attention_dropout": 0.3}))
    return folder


def test_the_first_dpo_loss_is_ln_2_with_a_config_that_has_dropout(folder):
    torch.manual_seed(0)
    scorer, batch = load_model(folder).scorer, pack(GROUPS)
    with torch.no_grad():
        reference = batch.sum_per_sequence(scorer.eval()(batch)).view(-1, 2)
        policy = batch.sum_per_sequence(scorer.train()(batch)).view(-1, 2)
    margin = torch.diff(reference - policy).squeeze(1)
    assert dpo_loss(margin, beta=0.1).mean().item() == pytest.approx(math.log(2), abs=1e-6)


def test_values_are_the_same_in_training_and_at_rest(folder):
    scorer, batch = load_value_model(folder, seed=1).scorer, pack_whole(GROUPS)
    assert torch.equal(scorer.train()(batch), scorer.eval()(batch))


def test_prepare_says_which_dropout_is_off(folder, caplog):
    with caplog.at_level(logging.INFO):
        report = check_model(Named(Model(source=f"file://{folder}"), "spec.model"), Resolved(folder), [language_model])
    assert report.dropout == {"attention_dropout": 0.3}
    assert "trained without the dropout of its config (attention_dropout 0.3)" in caplog.text


def test_the_exported_config_keeps_its_dropout(folder, tmp_path):
    model = load_model(folder)
    assert model.network.config.attention_dropout == 0
    write_description(model.network, model.noise, model.tokenizer, tmp_path, "float32")
    assert json.loads((tmp_path / "config.json").read_text())["attention_dropout"] == 0.3


def test_every_kind_of_noise_is_turned_off():
    """Also what GPT-2 has by default, what is called otherwise, and what stands in a config within the config."""
    gpt2 = GPT2Config(resid_pdrop=0.2)
    found = turn_off_noise(gpt2)
    assert found == {"resid_pdrop": 0.2, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "summary_first_dropout": 0.1}
    assert (gpt2.resid_pdrop, gpt2.embd_pdrop, gpt2.attn_pdrop) == (0, 0, 0)
    assert turn_off_noise(MixtralConfig(router_jitter_noise=0.01)) == {"router_jitter_noise": 0.01}
    nested = Gemma3Config(text_config={"attention_dropout": 0.25})
    found = turn_off_noise(nested)
    assert found == {"text_config.attention_dropout": 0.25}
    assert nested.text_config.attention_dropout == 0
    assert with_noise(nested.to_dict(), found)["text_config"]["attention_dropout"] == 0.25
    assert turn_off_noise(nested) == {}
