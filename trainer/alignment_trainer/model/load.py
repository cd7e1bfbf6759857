"""Models from their folders: transformers' network, its tokenizer, and the packed model on the same parameters."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignment_trainer.model.heads import PackedModel, UnsupportedModelError, scorer, value_scorer

VALUE_HEAD = "score.weight"
"""Name of a value model's head in its folder, as transformers' sequence classifiers have it."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in fp32 with its tokenizer. `scorer` shares the parameters of `network`, transformers' own model."""

    network: Any
    tokenizer: Any
    scorer: PackedModel


def load_model(folder: Path, gradient_checkpointing: bool = False, temperature: float = 1.0) -> LoadedModel:
    """The causal language model of a Hugging Face folder, in fp32 (the master weights).

    temperature: of sampling; log-probs are those of logits / temperature.
    Raises FileNotFoundError for a folder without a config, UnsupportedModelError for a model with a logit transform.
    """
    _check_folder(folder)
    causal = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return LoadedModel(causal, _tokenizer(folder), scorer(causal, gradient_checkpointing, temperature))


def load_value_model(
    folder: Path, gradient_checkpointing: bool = False, seed: int = 0, zero_head: bool = False
) -> LoadedModel:
    """The sequence classifier of one label in a Hugging Face folder, in fp32, or one made of its language model.

    The new head of a language model is normal with standard deviation 1 / sqrt(hidden size + 1) by `seed` (Stiennon et
    al. 2020), or zero where `zero_head` says so: a critic that expects nothing yet.
    Raises FileNotFoundError for a folder without a config, UnsupportedModelError for another kind of classifier.
    """
    _check_folder(folder)
    classifier, info = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    packed, tokenizer = value_scorer(classifier, gradient_checkpointing), _tokenizer(folder)
    if set(info["missing_keys"]) - {VALUE_HEAD}:
        raise UnsupportedModelError(f"{folder}: lacks the weights {', '.join(sorted(info['missing_keys']))}")
    if VALUE_HEAD in info["missing_keys"]:
        _start_head(classifier.score.weight, seed, zero_head)
    classifier.config.pad_token_id = _padding_apart(tokenizer)
    return LoadedModel(classifier, tokenizer, packed)


def _start_head(weight: nn.Parameter, seed: int, zero: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    deviation = 0.0 if zero else 1 / math.sqrt(weight.shape[1] + 1)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)


def _padding_apart(tokenizer: Any) -> int | None:
    """The padding token, unless completions end with it.

    transformers' classifiers score the last token that is not padding, so they would score the token before the end.
    Without one they take a single text at a time, and score the end.
    """
    same = tokenizer.pad_token_id == tokenizer.eos_token_id
    return None if same else tokenizer.pad_token_id


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no config.json; spec.model.source must be a Hugging Face folder with config, tokenizer and "
            "safetensors"
        )


def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
