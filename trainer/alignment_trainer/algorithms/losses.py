"""Losses as functions of log-probabilities. Imports only torch."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PairLogprobs:
    """Summed log-probs (nats) of the chosen and the rejected completion of each pair, each of shape (pairs,)."""

    chosen: Tensor
    rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """How much likelier the chosen completion is than the rejected one, in nats, shape (pairs,)."""
        return self.chosen - self.rejected


def dpo_loss(policy: PairLogprobs, reference: PairLogprobs, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimization, conservative when `label_smoothing` > 0.

    -(1 - e) log s(h) - e log s(-h),  h = beta [(w - w_ref) - (l - l_ref)]     (Rafailov 2023, eq. 7; Mitchell 2023)

    policy, reference: summed log-probs (nats) of chosen and rejected completions, each of shape (pairs,).
    Returns the loss of each pair, shape (pairs,); the caller averages over the global batch.
    """
    h = beta * (policy.margin - reference.margin)
    return -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_ratio: float,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate of PPO.

    -min(rho A, clip(rho, 1 - e, 1 + e) A),  rho = pi / pi_old                 (Schulman 2017, eq. 7)
    and where A < 0, with `dual_clip` c > 1: at most -c A                       (Ye 2020, eq. 5)

    logprobs, old_logprobs: nats, by the policy now and before the updates. advantages: of the same shape, whichever.
    Returns the loss of each token, and a bool of each: whether a bound holds, so that it has no gradient.
    """
    ratio = (logprobs - old_logprobs).exp()
    free = -ratio * advantages
    bounded = -ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantages
    loss, clipped = torch.maximum(free, bounded), bounded > free
    if dual_clip is None:
        return loss, clipped
    ceiling = -dual_clip * advantages
    beyond = (advantages < 0) & (loss > ceiling)
    return torch.where(beyond, ceiling, loss), clipped | beyond


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float | None) -> tuple[Tensor, Tensor]:
    """Half the squared error of the critic, the worse of two where `clip` bounds how far a value counts as moved.

    1/2 max((V - R)^2, (clip(V, V_old - e, V_old + e) - R)^2)                  (as in baselines; Engstrom 2020, 3)

    values, old_values, returns: of any one shape; by the critic now and before the updates, and what it is to learn.
    Returns the loss of each token, and a bool of each: whether the bound holds, so that it has no gradient.
    """
    free = (values - returns).square()
    if clip is None:
        return free / 2, torch.zeros_like(free, dtype=torch.bool)
    bounded = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    return torch.maximum(free, bounded) / 2, bounded > free


def reward_model_loss(chosen: Tensor, rejected: Tensor, margin: float = 0.0, center_coef: float = 0.0) -> Tensor:
    """Pairwise reward model, after Bradley and Terry.

    -log s(rw - rl - m) + c (rw + rl)^2           (Ouyang 2022, eq. 1; Touvron 2023, eq. 2; Eisenstein 2023, section 4)

    chosen, rejected: scores of the two completions of each pair, shape (pairs,).
    Returns the loss of each pair, shape (pairs,); the caller averages over the global batch.
    """
    return -logsigmoid(chosen - rejected - margin) + center_coef * (chosen + rejected).square()
