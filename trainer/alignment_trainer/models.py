"""Causal language models as scorers of completions: hidden states of the body, then the fused log-prob head."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment_trainer.attention import FLEX, attention_for, block_mask
from alignment_trainer.data.packing import PackedBatch
from alignment_trainer.logprobs import token_logprobs

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


class UnsupportedModelError(ValueError):
    """The model does something between hidden states and log-probs that this trainer would not reproduce."""


class LogprobHead(nn.Module):
    """The language-model head as a module of its own, so that engines which shard parameters gather its weight."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return token_logprobs(hidden, self.weight, targets)


class CompletionScorer(nn.Module):
    """Log-probs of completion tokens. Only their positions reach the head; prompts never do."""

    def __init__(self, causal: Any) -> None:
        super().__init__()
        _check_head(causal)
        self.body = causal.base_model
        self.head = LogprobHead(causal.get_output_embeddings().weight)
        names = {id(parameter): name for name, parameter in causal.named_parameters(remove_duplicate=False)}
        names |= {id(parameter): name for name, parameter in causal.named_parameters()}
        self.hub_names: dict[str, str] = {name: names[id(p)] for name, p in self.named_parameters()}

    def forward(self, batch: PackedBatch) -> Tensor:
        """Nats, shape (completion tokens,), in the order of `batch.targets`."""
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
class LanguageModel:
    """A model in fp32 with its tokenizer. `scorer` shares the parameters of `causal`."""

    causal: Any
    tokenizer: Any
    scorer: CompletionScorer


def load_model(folder: Path, gradient_checkpointing: bool = False) -> LanguageModel:
    """The causal language model of a Hugging Face folder, in fp32 (the master weights).

    Raises FileNotFoundError for a folder without a config, UnsupportedModelError for a model with a logit transform.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{folder}: no config.json; spec.model.source must be a Hugging Face folder with config, tokenizer and "
            "safetensors"
        )
    causal = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return LanguageModel(causal, tokenizer, scorer(causal, gradient_checkpointing))


def scorer(causal: Any, gradient_checkpointing: bool = False) -> CompletionScorer:
    """A scorer over the parameters of a causal language model; recomputes each layer in backward where asked to."""
    if gradient_checkpointing:
        causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return CompletionScorer(causal)


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
