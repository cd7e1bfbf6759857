"""Proximal policy optimization with a critic and a KL penalty in the reward."""

from typing import ClassVar

from torch import Tensor

from alignment_api.contract.algorithms import Ppo as PpoOptions
from alignment_trainer.algorithms.advantages import adapt_kl_coef, gae, kl_estimate, penalized_rewards, whiten
from alignment_trainer.algorithms.losses import policy_loss
from alignment_trainer.algorithms.online import OnlineAlgorithm, Targets, TokenBatch
from alignment_trainer.data.experience import Scored


class Ppo(OnlineAlgorithm):
    """Schulman et al. 2017; for language models Ziegler et al. 2019, Ouyang et al. 2022."""

    needs_critic: ClassVar[bool] = True

    def __init__(self, options: PpoOptions) -> None:
        super().__init__(options)
        self._ppo = options

    @property
    def scales_rewards(self) -> bool:
        return self._ppo.reward_scaling == "running"

    @property
    def first_kl_coef(self) -> float:
        return self._ppo.init_kl_coef

    def targets(self, scored: Scored, kl_coef: float) -> Targets:
        """r_t = -kl_coef KL_t + 1[t=T] score, then GAE, whitened over the global batch's completions with a loss."""
        mask, options = scored.rollout.mask, self._ppo
        scores, trained = self.scores(scored), self.trained(scored)
        kl = kl_estimate(scored.policy_logprobs, scored.ref_logprobs, options.kl_estimator)
        rewards = penalized_rewards(scores, kl, mask, kl_coef)
        advantages, returns = gae(rewards, scored.values, mask, options.gamma, options.gae_lambda, scored.end_values)
        return Targets(whiten(advantages, mask * trained[:, None], returns), returns, trained, scores)

    def token_weights(self, mask: Tensor) -> Tensor:
        """Every token of the batch counts the same."""
        return mask / mask.sum().clamp(min=1)

    def next_kl_coef(self, kl_coef: float, kl: float, completions: int) -> float:
        if not self._ppo.target_kl:
            return kl_coef
        return adapt_kl_coef(kl_coef, kl, self._ppo.target_kl, completions, self._ppo.kl_horizon)

    def surrogate(self, logprobs: Tensor, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return policy_loss(logprobs, batch.policy_logprobs, batch.advantages, self._ppo.clip_ratio, self._ppo.dual_clip)
