"""What lies in a model's folder is data: nothing of it runs, and nothing of what cannot be read is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.tiny import SHAPE, tiny_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from alignment_api.contract.inputs import Model
from alignment_trainer.data.sources import Resolved
from alignment_trainer.model.inspect import Named, check_model, language_model
from alignment_trainer.process.errors import UserError, failure_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "whole"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=400, eos_token_id=2, **SHAPE)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as refused:
        check_model(Named(Model(source=f"file://{folder}"), "spec.model"), Resolved(folder), [language_model])
    assert not failure_of(refused.value).retryable
    return str(refused.value)


@pytest.mark.parametrize(("file", "part"), [("config.json", "config"), ("tokenizer_config.json", "tokenizer")])
def test_a_model_that_brings_code_is_refused_and_its_code_never_runs(
    whole: Path, tmp_path: Path, file: str, part: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "theirs")
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Theirs: pass\n")
    code = {"AutoConfig": "theirs.Theirs", "AutoTokenizer": ["theirs.Theirs", None]}
    named = {"model_type": "theirs"} if part == "config" else {"tokenizer_class": "Theirs"}
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | {"auto_map": code} | named))
    assert f"its {part} is code in its folder (auto_map in its JSON files), and such code is never run" in refusal(
        folder
    )
    assert not (tmp_path / "ran").exists()
