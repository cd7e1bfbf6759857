"""Pairwise reward models."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignment_api.contract.algorithms import RewardModel as RewardModelOptions
from alignment_trainer.algorithms.base import ScoredRows
from alignment_trainer.algorithms.pairs import PairAlgorithm
from alignment_trainer.model.tasks import REWARD, ModelTask


@dataclass(frozen=True)
class RewardModel(PairAlgorithm):
    """Ouyang et al. 2022: the chosen completion's score above the rejected one's, by a scalar head on the model."""

    options: RewardModelOptions
    task: ClassVar[ModelTask] = REWARD

    def losses(self, pairs: ScoredRows) -> Tensor:
        chosen, rejected = pairs.scores.unbind(1)
        margins = torch.where(pairs.margins.isnan(), self.options.margin, pairs.margins)
        return reward_model_loss(chosen, rejected, margins, self.options.center_coef)

    def rewards(self, pairs: ScoredRows) -> Tensor:
        return pairs.scores


def reward_model_loss(
    chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0, center_coef: float = 0.0
) -> Tensor:
    """Pairwise reward model, after Bradley and Terry.

    -log s(rw - rl - m) + c (rw + rl)^2           (Ouyang 2022, eq. 1; Touvron 2023, eq. 2; Eisenstein 2023, section 4)

    chosen, rejected: scores of the two completions of each pair, shape (pairs,). margin: m, of each pair or of all.
    Returns the loss of each pair, shape (pairs,); the caller averages over the global batch.
    """
    return -logsigmoid(chosen - rejected - margin) + center_coef * (chosen + rejected).square()
