"""What `prepare` refuses of the corpus: by its reason, with the field or the row, what was found and the fix."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tests.corpus import FOLDER, Expectation, expectations
from tests.tiny import SHAPE, tiny_tokenizer, write_model
from transformers import (
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from alignment_api.contract.context import Context
from alignment_api.derived.source_fields import sources_read
from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard
from alignment_trainer.roles.prepare import run


def write_classifier(folder: Path, labels: int, tokenizer: Any) -> None:
    LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=labels, **SHAPE)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)


def write_wrapped(folder: Path) -> None:
    """As torch.compile's wrapper is saved."""
    network = LlamaForCausalLM(LlamaConfig(**({"vocab_size": 400} | SHAPE | {"tie_word_embeddings": False})))
    network.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(wrapped, folder / "model.safetensors", metadata={"format": "pt"})


def write_state_passing(folder: Path) -> None:
    """A family whose convolutions pass from one branch to the next."""
    config = Lfm2Config(**({"vocab_size": 400} | SHAPE), layer_types=["conv", "full_attention"], pad_token_id=0)
    Lfm2ForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifests with the models that they name."""
    folder = tmp_path_factory.mktemp("corpus") / "corpus"
    shutil.copytree(FOLDER, folder)
    write_model(folder / "model")
    write_classifier(folder / "two_labels", 2, tiny_tokenizer())
    other = tiny_tokenizer()
    other.add_tokens(["<|new|>"])
    write_classifier(folder / "another_tokenizer", 1, other)
    write_wrapped(folder / "wrapped")
    write_model(folder / "more_tokens")
    longer = tiny_tokenizer()
    longer.add_tokens(["apples", "bridges", "clouds"])
    longer.save_pretrained(folder / "more_tokens")
    write_state_passing(folder / "state_passing")
    return folder


def preparing(manifest: Path, storage: Path) -> Instance:
    """The role `prepare` of a manifest, in this process."""
    job = read_manifest(manifest.read_text(), manifest.name)
    sources = {
        source: str(manifest.parent / source.removeprefix("file://")) for source in sources_read(job.spec).values()
    }
    context = {
        **{"job": "bad", "uid": "uid-1", "stage": "prepare", "role": "prepare", "index": 0, "life": 1, "replicas": 1},
        **{"processes": 1, "gpus": 0, "job_file": str(manifest), "storage": str(storage), "output": str(storage)},
        **{"sources": sources, "peers": {}, "host": "127.0.0.1", "port": 0, "token_file": "", "outcome_file": ""},
        **{"rendezvous": "", "notice_seconds": 30, "scratch": ""},
    }
    return Instance(Context.model_validate(context), job, StatusBoard(), Metrics("bad", "prepare"), Interruption())


@pytest.mark.parametrize("expectation", expectations("prepare"), ids=str)
def test_prepare_refuses_before_it_is_ready(expectation: Expectation, corpus: Path, tmp_path: Path) -> None:
    instance = preparing(corpus / expectation.file.name, tmp_path)
    with pytest.raises(UserError) as refused:
        run(instance)
    complaint = f"{refused.value.reason}: {refused.value}"
    assert re.search(expectation.pattern, complaint, re.DOTALL), complaint
    assert not instance.board.read().ready
