"""What an online algorithm is: targets for the tokens that were sampled, a loss for each of them, and its weight."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from alignment_api.contract.algorithms import Online
from alignment_trainer.algorithms.advantages import importance_weights, kl_estimate, penalize_missing_end
from alignment_trainer.algorithms.base import LossAndMetrics
from alignment_trainer.algorithms.losses import policy_loss
from alignment_trainer.data.experience import Scored


@dataclass(frozen=True)
class Targets:
    """advantages, returns: (N, T); returns are what a critic learns (zeros where there is none).

    trained: (N,) bool, whether a completion has a loss at all. scores: (N,) as they were used, penalties included.
    """

    advantages: Tensor
    returns: Tensor
    trained: Tensor
    scores: Tensor


@dataclass(frozen=True)
class TokenBatch:
    """What the loss knows of each token besides its log-prob now; each (tokens,)."""

    policy_logprobs: Tensor
    rollout_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor


class OnlineAlgorithm(ABC):
    """Learns from what it samples."""

    needs_critic: ClassVar[bool]

    def __init__(self, options: Online) -> None:
        self.options = options

    @property
    def scales_rewards(self) -> bool:
        """Whether what the critic learns is divided by the running deviation of the scores."""
        return False

    @property
    def bootstraps(self) -> bool:
        """Whether the critic's value stands in for the score of a completion that was cut off."""
        return self.options.truncated == "bootstrap"

    def trained(self, scored: Scored) -> Tensor:
        """(N,) bool: the completions that are learnt from."""
        return self.judged(scored) if self.options.truncated == "mask" else scored.counted.bool()

    def judged(self, scored: Scored) -> Tensor:
        """(N,) bool: the completions whose own score counts."""
        counted, finished = scored.counted.bool(), scored.rollout.finished.bool()
        return counted if self.options.truncated == "score" else counted & finished

    def scores(self, scored: Scored) -> Tensor:
        """(N,) scores, 0 where they do not count, less the penalty of a missing end."""
        scores = torch.where(self.judged(scored), scored.scores, 0.0)
        return penalize_missing_end(scores, scored.rollout.finished.bool(), self.options.eos_penalty)

    @property
    @abstractmethod
    def first_kl_coef(self) -> float:
        """Weight of the KL term before the first step."""

    @abstractmethod
    def targets(self, scored: Scored, kl_coef: float) -> Targets:
        """What the completions teach."""

    @abstractmethod
    def token_weights(self, mask: Tensor) -> Tensor:
        """(completions, T) weights of the tokens of an optimizer step; they add up to 1, of no token at all to 0.

        mask: of the tokens that are learnt from; a completion without a score has none.
        """

    def teaches(self, advantages: Tensor, kl_coef: float) -> bool:
        """Whether these advantages have a gradient: without one a step is the optimizer's memory alone."""
        return bool(advantages.any())

    def next_kl_coef(self, kl_coef: float, kl: float, completions: int) -> float:
        """The weight of the KL term after a step that found `kl` nats per token."""
        return kl_coef

    def loss(self, logprobs: Tensor, batch: TokenBatch, kl_coef: float) -> LossAndMetrics:
        """Loss and metrics of each token, (tokens,).

        The clipped surrogate times the truncated importance weight of the weights that sampled (Yao et al. 2025).
        update_kl: k3 of the policy now towards the policy that sampled.
        """
        clipped_loss, clipped = self.surrogate(logprobs, batch)
        correction = importance_weights(batch.policy_logprobs, batch.rollout_logprobs, self.options.importance_cap)
        loss = clipped_loss * correction + self.penalty(logprobs, batch, kl_coef)
        with torch.no_grad():
            metrics = {
                "loss": loss.detach(),
                "clip_ratio": clipped.float(),
                "update_kl": kl_estimate(batch.policy_logprobs, logprobs.detach(), "k3"),
            }
        return LossAndMetrics(loss, metrics)

    def surrogate(self, logprobs: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """The clipped policy loss, and where it was clipped."""
        return policy_loss(logprobs, batch.policy_logprobs, batch.advantages, self.options.clip_ratio)

    def penalty(self, logprobs: Tensor, batch: TokenBatch, kl_coef: float) -> Tensor:
        """What the loss adds for leaving the reference; nothing, where rewards carry it."""
        return torch.zeros_like(logprobs)
