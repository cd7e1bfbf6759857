"""Models over packed batches: the body's hidden states, then a head on those that predict something.

A language model scores tokens by the fused log-prob head; a value model turns a state into one number.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignment_trainer.attention import FLEX, attention_for, block_mask
from alignment_trainer.data.packing import PackedBatch
from alignment_trainer.logprobs import token_logprobs

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
VALUE_HEAD = "score.weight"
"""Name of a value model's head in its folder, as transformers' sequence classifiers have it."""


class UnsupportedModelError(ValueError):
    """The model does something that this trainer would not reproduce, or has another head than its use needs."""


class LogprobHead(nn.Module):
    """The language-model head as a module of its own, so that engines which shard parameters gather its weight.

    temperature: of sampling. States are divided by it, which divides the logits, since the head has no bias.
    """

    def __init__(self, weight: nn.Parameter, temperature: float = 1.0) -> None:
        super().__init__()
        self.weight, self._temperature = weight, temperature

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Nats of each target by the state before it, both (n,)."""
        scaled = hidden if self._temperature == 1.0 else hidden / self._temperature
        return token_logprobs(scaled, self.weight, targets)


class ValueHead(nn.Module):
    """One number of a state, in fp32 whatever the precision: bf16 would round scores to three digits."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: Tensor, _targets: Tensor) -> Tensor:
        """(n, hidden size) to (n,)."""
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.float() @ self.weight[0].float()


class PackedModel(nn.Module):
    """A body and a head. Only the states of predictors reach the head; the others never do.

    hub_names: a parameter's name here -> its name in the model's folder.
    """

    def __init__(self, network: Any, head: LogprobHead | ValueHead) -> None:
        super().__init__()
        self.body = network.base_model
        self.head = head
        names = {id(parameter): name for name, parameter in network.named_parameters(remove_duplicate=False)}
        names |= {id(parameter): name for name, parameter in network.named_parameters()}
        self.hub_names: dict[str, str] = {name: names[id(p)] for name, p in self.named_parameters()}

    def forward(self, batch: PackedBatch) -> Tensor:
        """One number for each predictor, (n,): nats of its target by a language model, else a value or score."""
        flex = self._use_attention(batch) == FLEX
        hidden = self.body(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=block_mask(batch) if flex else None,
            use_cache=False,
            **({} if flex else {"layout": batch.layout}),
        ).last_hidden_state
        result: Tensor = self.head(hidden[0].index_select(0, batch.predictors), batch.targets)
        return result

    def _use_attention(self, batch: PackedBatch) -> str:
        """Lets the body attend as suits the batch's device. Raises UnsupportedModelError beyond a sliding window."""
        config, longest = self.body.config, max(row[0] + max(row[1:]) for row in batch.layout)
        window = getattr(config, "sliding_window", None)
        if window is not None and longest > window:
            raise UnsupportedModelError(
                f"{config.model_type}: attends to {window} tokens at most, found {longest} in one sequence; "
                f"lower spec.training.maxLength to {window}"
            )
        attention = attention_for(batch.input_ids.device)
        if config._attn_implementation != attention:
            self.body.set_attn_implementation(attention)
        return attention


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


def scorer(causal: Any, gradient_checkpointing: bool = False, temperature: float = 1.0) -> PackedModel:
    """Log-probs by a causal language model; recomputes each layer in backward where asked to."""
    _check_head(causal)
    _checkpoint_gradients(causal, gradient_checkpointing)
    return PackedModel(causal, LogprobHead(causal.get_output_embeddings().weight, temperature))


def value_scorer(classifier: Any, gradient_checkpointing: bool = False) -> PackedModel:
    """Values by a sequence classifier of one label. Raises UnsupportedModelError for any other."""
    head = getattr(classifier, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None or head.out_features != 1:
        raise UnsupportedModelError(
            f"{classifier.config.model_type}: needs a linear head `score` of one label without bias, found {head}; "
            "choose a model of the Llama, Qwen2, Qwen3 or Mistral family"
        )
    _checkpoint_gradients(classifier, gradient_checkpointing)
    return PackedModel(classifier, ValueHead(head.weight))


def _checkpoint_gradients(network: Any, wanted: bool) -> None:
    if wanted:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


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


def _check_head(causal: Any) -> None:
    head = causal.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise UnsupportedModelError(
            f"{causal.config.model_type}: needs a language-model head without bias, found {head}"
        )
    scaled = [name for name in _LOGIT_TRANSFORMS if getattr(causal.config, name, None) not in (None, 1, 1.0)]
    if scaled:
        raise UnsupportedModelError(
            f"{causal.config.model_type}: `{scaled[0]}` changes the logits behind the head, which the log-prob op does "
            "not do; choose a model of the Llama, Qwen2, Qwen3 or Mistral family"
        )
