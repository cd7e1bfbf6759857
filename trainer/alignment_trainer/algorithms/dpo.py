"""Direct preference optimization."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment_trainer.algorithms.base import LossAndMetrics, OfflineAlgorithm
from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.packing import PromptGroup, pair_group
from alignment_trainer.losses import PairLogprobs, dpo_loss


@dataclass(frozen=True)
class Dpo(OfflineAlgorithm):
    """Rafailov et al. 2023; with label smoothing, conservative DPO (Mitchell 2023)."""

    beta: float = 0.1
    label_smoothing: float = 0.0
    needs_reference: ClassVar[bool] = True

    def group(self, example: PreferenceExample) -> PromptGroup:
        return pair_group(example)

    def loss(self, logprobs: Tensor, reference: Tensor) -> LossAndMetrics:
        """logprobs, reference: (pairs, 2), chosen then rejected."""
        policy, frozen = PairLogprobs(*logprobs.unbind(1)), PairLogprobs(*reference.unbind(1))
        loss = dpo_loss(policy, frozen, self.beta, self.label_smoothing)
        with torch.no_grad():
            return LossAndMetrics(loss, self._metrics(policy, frozen) | {"loss": loss.detach()})

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


def share_positive(margin: Tensor) -> Tensor:
    """1 where positive, 0 where negative, a half for a tie; the mean is the share."""
    return (margin.sign() + 1) / 2
