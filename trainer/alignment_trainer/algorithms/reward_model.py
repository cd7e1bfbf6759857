"""Pairwise reward models."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from alignment_api.contract.status import Evaluated
from alignment_trainer.algorithms.base import Float32, LossAndMetrics, OfflineAlgorithm, positive, share_positive
from alignment_trainer.algorithms.losses import reward_model_loss
from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.packing import PromptGroup, pair_group
from alignment_trainer.data.statistics import mean_interval, share_interval
from alignment_trainer.model.tasks import REWARD, ModelTask


@dataclass(frozen=True)
class RewardModel(OfflineAlgorithm):
    """Ouyang et al. 2022: the chosen completion's score above the rejected one's, by a scalar head on the model."""

    margin: float = 0.0
    center_coef: float = 0.0
    task: ClassVar[ModelTask] = REWARD
    needs_reference: ClassVar[bool] = False

    def group(self, example: PreferenceExample) -> PromptGroup:
        return pair_group(example)

    def loss(self, scores: Tensor, reference: Tensor) -> LossAndMetrics:
        """scores: (pairs, 2), chosen then rejected."""
        chosen, rejected = scores.unbind(1)
        loss = reward_model_loss(chosen, rejected, self.margin, self.center_coef)
        with torch.no_grad():
            metrics = {
                "loss": loss.detach(),
                "reward_margin": chosen - rejected,
                "accuracy": share_positive(chosen - rejected),
                "chosen_reward": chosen.detach(),
                "rejected_reward": rejected.detach(),
            }
        return LossAndMetrics(loss, metrics)

    def evaluated(self, scores: Float32, reference: Float32, prompts: Sequence[Hashable]) -> Evaluated:
        """Of the pairs the share and the mean margin; a new head is near chance, not at it."""
        chosen, rejected = scores.astype(np.float64).T
        return {
            "accuracy": share_interval(positive(chosen - rejected), prompts),
            "margin": mean_interval(chosen - rejected, prompts),
        }
