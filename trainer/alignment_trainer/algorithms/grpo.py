"""Group relative policy optimization."""

from typing import ClassVar

import torch
from torch import Tensor

from alignment_api.contract.algorithms import Grpo as GrpoOptions
from alignment_trainer.algorithms.advantages import group_advantages, kl_estimate
from alignment_trainer.algorithms.online import OnlineAlgorithm, Targets, TokenBatch
from alignment_trainer.data.experience import Scored


class Grpo(OnlineAlgorithm):
    """Shao et al. 2024: a completion is compared with the others of its prompt; the KL term stands in the loss."""

    needs_critic: ClassVar[bool] = False

    def __init__(self, options: GrpoOptions) -> None:
        super().__init__(options)
        self._grpo = options

    @property
    def first_kl_coef(self) -> float:
        return self._grpo.kl_coef

    def targets(self, scored: Scored, kl_coef: float) -> Targets:
        """(r - mean) / (std + 1e-4) within each group, the same for every token of a completion (eq. 3)."""
        mask, groups = scored.rollout.mask, (-1, self._grpo.group_size)
        scores, trained = self.scores(scored), self.trained(scored)
        advantages = group_advantages(scores.view(groups), trained.view(groups).float()).view(-1, 1)
        return Targets(advantages * mask, torch.zeros_like(mask), trained, scores)

    def token_weights(self, mask: Tensor) -> Tensor:
        """Every completion counts the same, and so does every token within it (eq. 3)."""
        completions = mask.any(dim=1).sum().clamp(min=1)
        return mask / mask.sum(dim=1, keepdim=True).clamp(min=1) / completions

    def teaches(self, advantages: Tensor, kl_coef: float) -> bool:
        return kl_coef > 0 or super().teaches(advantages, kl_coef)

    def penalty(self, logprobs: Tensor, batch: TokenBatch, kl_coef: float) -> Tensor:
        return kl_coef * kl_estimate(logprobs, batch.ref_logprobs, "k3")
