"""Kahneman-Tversky optimization."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment_api.contract.algorithms import Kto as KtoOptions
from alignment_api.contract.status import Evaluated
from alignment_trainer.algorithms.base import LossAndMetrics, OfflineAlgorithm, ScoredRows
from alignment_trainer.algorithms.pairs import share_positive
from alignment_trainer.data.statistics import difference_interval, share_interval
from alignment_trainer.model.tasks import LANGUAGE, ModelTask


@dataclass(frozen=True)
class Kto(OfflineAlgorithm):
    """Ethayarajh et al. 2024. A row's completions: its own, and one that answers another prompt."""

    options: KtoOptions
    task: ClassVar[ModelTask] = LANGUAGE
    learned: ClassVar[slice] = slice(0, 1)
    prepass: ClassVar[slice | None] = slice(1, 2)

    def before(self, rows: ScoredRows) -> Tensor:
        """z: max(0, mean over the step of log pi(y'|x) - log ref(y'|x)), y' mismatched    (section 4.1)

        Each row by its own weight.
        """
        ratios = _ratios(rows)
        return (ratios @ self.weights(rows).to(ratios)).clamp(min=0)

    def loss(self, batch: ScoredRows) -> LossAndMetrics:
        options, ratios, desirable = self.options, _ratios(batch), batch.labels > 0
        values = kto_loss(ratios, desirable, batch.before, options.beta)
        loss = values * torch.where(desirable, options.desirable_weight, options.undesirable_weight)
        with torch.no_grad():
            return LossAndMetrics(
                loss,
                {
                    "loss": loss.detach(),
                    "accuracy": share_positive(_signed(ratios.detach(), desirable)),
                    "reference_point": batch.before.expand(len(loss)),
                },
            )

    def evaluated(self, rows: ScoredRows, prompts: Sequence[Hashable]) -> Evaluated:
        """A reference itself is at chance: every reward is zero, and a tie is a half."""
        rewards, desirable = self.options.beta * _ratios(rows), rows.labels > 0
        agreed = share_positive(_signed(rewards, desirable))
        figures = {"accuracy": share_interval(agreed.numpy(), prompts)}
        if desirable.any() and not desirable.all():
            figures["margin"] = difference_interval(rewards.numpy(), desirable.numpy(), prompts)
        return figures


def _ratios(rows: ScoredRows) -> Tensor:
    """(rows,) nats towards the reference."""
    return rows.scores[:, 0] - rows.reference[:, 0]


def _signed(values: Tensor, desirable: Tensor) -> Tensor:
    return torch.where(desirable, values, -values)


def kto_loss(ratios: Tensor, desirable: Tensor, point: Tensor, beta: float) -> Tensor:
    """1 - s(beta (r - z)) of a desirable completion, 1 - s(beta (z - r)) of another    (Ethayarajh 2024, eq. 8)

    ratios: r, nats, log pi - log ref, shape (rows,). desirable: bool, (rows,). point: z, nats, a scalar without a
    gradient. Returns the loss of each row before its weight, shape (rows,).
    """
    return torch.sigmoid(-beta * _signed(ratios - point, desirable))
