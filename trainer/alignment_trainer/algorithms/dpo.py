"""Direct preference optimization."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from alignment_api.contract.status import Evaluated
from alignment_trainer.algorithms.base import Float32, LossAndMetrics, OfflineAlgorithm, positive, share_positive
from alignment_trainer.algorithms.losses import PairLogprobs, dpo_loss
from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.packing import PromptGroup, pair_group
from alignment_trainer.data.statistics import mean_interval, share_interval
from alignment_trainer.model.tasks import LANGUAGE, ModelTask


@dataclass(frozen=True)
class Dpo(OfflineAlgorithm):
    """Rafailov et al. 2023; with label smoothing, conservative DPO (Mitchell 2023)."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    task: ClassVar[ModelTask] = LANGUAGE
    needs_reference: ClassVar[bool] = True

    def group(self, example: PreferenceExample) -> PromptGroup:
        return pair_group(example)

    def loss(self, scores: Tensor, reference: Tensor) -> LossAndMetrics:
        """scores, reference: (pairs, 2), chosen then rejected."""
        policy, frozen = PairLogprobs(*scores.unbind(1)), PairLogprobs(*reference.unbind(1))
        loss = dpo_loss(policy, frozen, self.beta, self.label_smoothing)
        with torch.no_grad():
            return LossAndMetrics(loss, self._metrics(policy, frozen) | {"loss": loss.detach()})

    def evaluated(self, scores: Float32, reference: Float32, prompts: Sequence[Hashable]) -> Evaluated:
        """The reference itself is at chance: every margin is zero, and a tie is a half."""
        policy, frozen = (values.astype(np.float64) for values in (scores, reference))
        ratio = policy - frozen
        margin = self.beta * (ratio[:, 0] - ratio[:, 1])
        return {
            "accuracy": share_interval(positive(margin), prompts),
            "margin": mean_interval(margin, prompts),
            "likelierChosen": share_interval(positive(policy[:, 0] - policy[:, 1]), prompts),
        }

    def _metrics(self, policy: PairLogprobs, reference: PairLogprobs) -> dict[str, Tensor]:
        """Implicit rewards are beta times the log-ratio to the reference (Rafailov 2023, eq. 5)."""
        chosen = self.beta * (policy.chosen - reference.chosen)
        rejected = self.beta * (policy.rejected - reference.rejected)
        return {
            "reward_margin": chosen - rejected,
            "accuracy": share_positive(chosen - rejected),
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "chosen_logprob": policy.chosen.detach(),
            "rejected_logprob": policy.rejected.detach(),
            "likelier_chosen": share_positive(policy.margin),
        }
