"""Models over packed batches: the body's hidden states, then a head on those that predict something.

A language model scores tokens by the fused log-prob head; a value model turns a state into one number.
"""

from typing import Any

import torch
from torch import Tensor, nn

from alignment_trainer.data.packing import PackedBatch
from alignment_trainer.model.attention import FLEX, attention_for
from alignment_trainer.model.block_mask import block_mask
from alignment_trainer.model.cut import layers_of
from alignment_trainer.model.families import ADVICE
from alignment_trainer.model.logprobs import token_logprobs
from alignment_trainer.model.mistakes import UnsupportedModelError

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logits_scaling", "logit_scale")


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
        return self.predict(self.states(batch), batch)

    def states(self, batch: PackedBatch) -> Tensor:
        """(tokens, hidden size): the body's last hidden states."""
        flex = self._use_attention(batch) == FLEX
        hidden: Tensor = self.body(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            **({"blocks": block_mask(batch)} if flex else {"layout": batch.layout}),
        ).last_hidden_state
        return hidden[0]

    def predict(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """What `forward` returns, by the states of all tokens."""
        result: Tensor = self.head(states.index_select(0, batch.predictors), batch.targets)
        return result

    def _use_attention(self, batch: PackedBatch) -> str:
        """Lets the body attend as suits the batch's device. Raises UnsupportedModelError beyond a sliding window."""
        config, longest = self.body.config, max(row[0] + max(row[1:]) for row in batch.layout)
        window = getattr(config, "sliding_window", None)
        if window and longest > window:  # some families write 0 for none
            raise UnsupportedModelError(
                f"{config.model_type}: attends to {window} tokens at most, found {longest} in one sequence; "
                f"lower spec.training.maxLength to {window}"
            )
        attention = attention_for(batch.input_ids.device)
        if config._attn_implementation != attention:
            self.body.set_attn_implementation(attention)
        return attention


def scorer(causal: Any, recompute: int = 0, temperature: float = 1.0) -> PackedModel:
    """Log-probs by a causal language model; the first `recompute` layers are computed again in backward."""
    _check_head(causal)
    _recompute(causal, recompute)
    return PackedModel(causal, LogprobHead(causal.get_output_embeddings().weight, temperature))


def value_scorer(classifier: Any, recompute: int = 0) -> PackedModel:
    """Values by a sequence classifier of one label. Raises UnsupportedModelError for any other."""
    head = getattr(classifier, "score", None)
    if not isinstance(head, nn.Linear) or head.bias is not None or head.out_features != 1:
        raise UnsupportedModelError(
            f"{classifier.config.model_type}: needs a linear head `score` of one label without bias, found {head}; "
            f"{ADVICE}"
        )
    _recompute(classifier, recompute)
    return PackedModel(classifier, ValueHead(head.weight))


def _recompute(network: Any, layers: int) -> None:
    """The first layers, since the others have given back theirs by the time that these are made again."""
    if layers:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        for kept in layers_of(network, network.config)[layers:]:
            kept.gradient_checkpointing = False  # type: ignore[assignment]


def _check_head(causal: Any) -> None:
    head = causal.get_output_embeddings()
    if head is None or getattr(head, "bias", None) is not None:
        raise UnsupportedModelError(
            f"{causal.config.model_type}: needs a language-model head without bias, found {head}; {ADVICE}"
        )
    scaled = [name for name in _LOGIT_TRANSFORMS if getattr(causal.config, name, None) not in (None, 1, 1.0)]
    if scaled:
        raise UnsupportedModelError(
            f"{causal.config.model_type}: `{scaled[0]}` changes the logits behind the head, which the log-prob op does "
            f"not do; {ADVICE}"
        )
