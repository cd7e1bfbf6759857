"""What algorithms share that learn from pairs: the chosen completion's reward above the rejected one's."""

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment_api.contract.status import Evaluated
from alignment_trainer.algorithms.base import LossAndMetrics, OfflineAlgorithm, ScoredRows
from alignment_trainer.data.statistics import mean_interval, share_interval
from alignment_trainer.model.tasks import LANGUAGE, ModelTask


@dataclass(frozen=True)
class PairAlgorithm(OfflineAlgorithm):
    """Every tensor of a row is (pairs, 2): chosen, then rejected."""

    @abstractmethod
    def losses(self, pairs: ScoredRows) -> Tensor:
        """(pairs,), with the gradient."""

    @abstractmethod
    def rewards(self, pairs: ScoredRows) -> Tensor:
        """(pairs, 2): what the loss compares."""

    def loss(self, batch: ScoredRows) -> LossAndMetrics:
        loss = self.losses(batch)
        with torch.no_grad():
            return LossAndMetrics(loss, {"loss": loss.detach()} | self.metrics(batch))

    def metrics(self, pairs: ScoredRows) -> dict[str, Tensor]:
        """Of each pair, beside the loss."""
        chosen, rejected = self.rewards(pairs).detach().unbind(1)
        return {
            "reward_margin": chosen - rejected,
            "accuracy": share_positive(chosen - rejected),
            "chosen_reward": chosen,
            "rejected_reward": rejected,
        }

    def evaluated(self, rows: ScoredRows, prompts: Sequence[Hashable]) -> Evaluated:
        """A reference itself is at chance: every margin is zero, and a tie is a half."""
        chosen, rejected = self.rewards(rows).unbind(1)
        margin = chosen - rejected
        return {
            "accuracy": share_interval(share_positive(margin).numpy(), prompts),
            "margin": mean_interval(margin.numpy(), prompts),
        }


@dataclass(frozen=True)
class LanguagePairs(PairAlgorithm):
    """Of a language model: scores are summed log-probs (nats)."""

    task: ClassVar[ModelTask] = LANGUAGE

    def metrics(self, pairs: ScoredRows) -> dict[str, Tensor]:
        chosen, rejected = pairs.scores.detach().unbind(1)
        return super().metrics(pairs) | {
            "chosen_logprob": chosen,
            "rejected_logprob": rejected,
            "likelier_chosen": share_positive(chosen - rejected),
            "chosen_nll": -per_token(pairs)[:, 0].detach(),
        }

    def evaluated(self, rows: ScoredRows, prompts: Sequence[Hashable]) -> Evaluated:
        likelier = share_positive(rows.scores[:, 0] - rows.scores[:, 1])
        return super().evaluated(rows, prompts) | {"likelierChosen": share_interval(likelier.numpy(), prompts)}


def per_token(pairs: ScoredRows) -> Tensor:
    """(pairs, 2) nats per token."""
    return pairs.scores / pairs.lengths


def log_ratios(pairs: ScoredRows, length_normalized: bool) -> Tensor:
    """(pairs, 2) nats towards the reference, per completion or per token."""
    ratios = pairs.scores - pairs.reference
    return ratios / pairs.lengths if length_normalized else ratios


def share_positive(margin: Tensor) -> Tensor:
    """1 where positive, 0 where negative, a half for a tie; the mean is the share."""
    return (margin.sign() + 1) / 2
