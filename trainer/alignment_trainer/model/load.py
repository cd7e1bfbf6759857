"""Models from their folders: transformers' network, its tokenizer, and the packed model on the same parameters."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment_trainer.model.config import Noise, read_config, say_noise
from alignment_trainer.model.folder import causal_network, tokenizer_of
from alignment_trainer.model.heads import PackedModel, scorer, value_scorer
from alignment_trainer.model.tensors import Apart, check_loaded, silenced

VALUE_HEAD = "score.weight"
"""Name of a value model's head in its folder, as transformers' sequence classifiers have it."""


@dataclass(frozen=True)
class LoadedModel:
    """A model in fp32 with its tokenizer. `scorer` shares the parameters of `network`, transformers' own model.

    noise: what its config had of dropout, which is off here and goes back into an export.
    head_is_new: a value model's head that nothing was trained into yet.
    """

    network: Any
    tokenizer: Any
    scorer: PackedModel
    noise: Noise = field(default_factory=dict)
    head_is_new: bool = False


def load_model(folder: Path, gradient_checkpointing: bool = False, temperature: float = 1.0) -> LoadedModel:
    """The causal language model of a Hugging Face folder, in fp32 (the master weights).

    temperature: of sampling; log-probs are those of logits / temperature.
    Raises FileNotFoundError for a folder without a config, UnsupportedModelError for a model with a logit transform,
    InvalidModelError where a weight would be filled at random or left out.
    """
    config, noise = _read_config(folder)
    causal = _load(AutoModelForCausalLM, folder, config, Apart())[0]
    return LoadedModel(causal, tokenizer_of(folder), scorer(causal, gradient_checkpointing, temperature), noise)


def load_value_model(
    folder: Path, gradient_checkpointing: bool = False, seed: int = 0, zero_head: bool = False
) -> LoadedModel:
    """The sequence classifier of one label in a Hugging Face folder, in fp32, or one made of its language model.

    The new head of a language model is normal with standard deviation 1 / sqrt(hidden size + 1) by `seed` (Stiennon et
    al. 2020), or zero where `zero_head` says so: a critic that expects nothing yet.
    Raises FileNotFoundError for a folder without a config, UnsupportedModelError for another kind of classifier,
    InvalidModelError where any other weight would be filled at random or left out.
    """
    config, noise = _read_config(folder)
    config.num_labels = 1
    classifier, is_new = _load(AutoModelForSequenceClassification, folder, config, apart_of_values(config))
    packed, tokenizer = value_scorer(classifier, gradient_checkpointing), tokenizer_of(folder)
    if VALUE_HEAD in is_new:
        start_head(classifier.score.weight, seed, zero_head)
    classifier.config.pad_token_id = _padding_apart(tokenizer)
    return LoadedModel(classifier, tokenizer, packed, noise, VALUE_HEAD in is_new)


def apart_of_values(config: Any) -> Apart:
    """What a value model need not find in its files: made of a language model its head is new, the other is spare."""
    if is_classifier(config):
        return Apart()
    with torch.device("meta"):
        causal = causal_network(config)
    body = f"{causal.base_model_prefix}."
    head = frozenset(name for name in causal.state_dict() if not name.startswith(body))
    return Apart(new=frozenset({VALUE_HEAD}), spare=head)


def is_classifier(config: Any) -> bool:
    """Whether a folder says that it scores texts, with a head that was trained."""
    return str((config.architectures or ["none"])[0]).endswith("ForSequenceClassification")


def start_head(weight: nn.Parameter, seed: int, zero: bool) -> None:
    """Gives a value model's new head its numbers."""
    generator = torch.Generator().manual_seed(seed)
    deviation = 0.0 if zero else 1 / math.sqrt(weight.shape[1] + 1)
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)


def _load(auto: Any, folder: Path, config: Any, apart: Apart) -> tuple[Any, set[str]]:
    """transformers' model in fp32, and which of its tensors are new. Nothing else may be new, left out or reshaped."""
    with silenced():
        network, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported, and refused, by name
            output_loading_info=True,
        )
    check_loaded(network, info, apart)
    return network, set(info["missing_keys"])


def _read_config(folder: Path) -> tuple[Any, Noise]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no config.json; spec.model.source must be a Hugging Face folder with config, tokenizer and "
            "safetensors"
        )
    config, noise = read_config(folder)
    say_noise(noise, str(folder))
    return config, noise


def _padding_apart(tokenizer: Any) -> int | None:
    """The padding token, unless completions end with it.

    transformers' classifiers score the last token that is not padding, so they would score the token before the end.
    Without one they take a single text at a time, and score the end.
    """
    same = tokenizer.pad_token_id == tokenizer.eos_token_id
    return None if same else tokenizer.pad_token_id
