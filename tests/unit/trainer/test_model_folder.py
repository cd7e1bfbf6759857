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


SECRET = "q7-Xb_94hSecretOfAnother"
UNPARSED = {
    "no JSON": SECRET,
    "a string": f'"{SECRET}"',
    "cut off": f'{{"{SECRET}": ',
    "no UTF-8": b"\xff" + SECRET.encode(),
    "an array": f'["{SECRET}"]',
}


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", UNPARSED)
def test_a_file_that_cannot_be_read_is_named_and_never_quoted(
    whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, content: str
) -> None:
    folder = shutil.copytree(whole, tmp_path / "theirs")
    written = UNPARSED[content]
    (folder / file).write_bytes(written if isinstance(written, bytes) else written.encode())
    message = refusal(folder)
    assert f"{file} " in message
    assert SECRET not in message + caplog.text


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"hidden_size": SECRET}),
        ("config.json", {"rope_parameters": SECRET}),
        ("tokenizer.json", {"truncation": SECRET}),
        ("tokenizer.json", {"model": {"type": SECRET}}),
    ],
)
def test_what_a_library_met_in_a_file_is_not_told(
    whole: Path, tmp_path: Path, file: str, fields: dict[str, object]
) -> None:
    folder = shutil.copytree(whole, tmp_path / "theirs")
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | fields))
    assert SECRET not in refusal(folder)
