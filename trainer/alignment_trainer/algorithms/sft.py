"""Supervised fine-tuning."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment_api.contract.algorithms import Sft as SftOptions
from alignment_api.contract.status import Evaluated
from alignment_trainer.algorithms.base import LossAndMetrics, OfflineAlgorithm, ScoredRows
from alignment_trainer.data.statistics import exponential, ratio_interval
from alignment_trainer.model.tasks import LANGUAGE, ModelTask


@dataclass(frozen=True)
class Sft(OfflineAlgorithm):
    """Every trained token of a step counts alike, in however long a row it stands."""

    options: SftOptions
    task: ClassVar[ModelTask] = LANGUAGE

    def counted(self, lengths: Tensor) -> Tensor:
        """A row's trained tokens, so that the loss is a mean over those of the step."""
        return lengths[:, 0]

    def loss(self, batch: ScoredRows) -> LossAndMetrics:
        loss = sft_loss(batch.scores[:, 0], batch.lengths[:, 0])
        return LossAndMetrics(loss, {"loss": loss.detach()})

    def evaluated(self, rows: ScoredRows, prompts: Sequence[Hashable]) -> Evaluated:
        nll = ratio_interval(-rows.scores[:, 0].numpy(), rows.lengths[:, 0].numpy(), prompts)
        return {"nll": nll, "perplexity": exponential(nll)}


def sft_loss(logprobs: Tensor, tokens: Tensor) -> Tensor:
    """-w / |w|: negative log-likelihood.

    logprobs: w, nats, summed over the trained tokens of each row, (rows,). tokens: |w|, how many those are, (rows,).
    Returns nats per token of each row, (rows,).
    """
    return -logprobs / tokens
