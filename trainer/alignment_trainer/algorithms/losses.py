"""The losses of actors and critics, as functions of tensors. Imports only torch."""

import torch
from torch import Tensor


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
