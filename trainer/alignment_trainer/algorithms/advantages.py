"""What sampled completions teach: KL estimates, rewards per token, advantages. Imports only torch.

N completions are padded to T tokens; completion_mask (`mask`) is 1 where a token belongs to its completion. What stands
elsewhere, NaN included, changes no result, and every result of shape (N, T) is 0 there. Nothing here has a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]
_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda d: d,
    "k2": lambda d: d.square() / 2,
    "k3": lambda d: torch.expm1(-d) + d,
}
_CONTROLLER_CLIP = 0.2
_WHITEN_EPSILON = 1e-8
_NO_DEVIATION = 1e-7
"""Below this share of the mean (or of 1) fp32 scores are equal but for rounding."""
_ROUNDING = 8
"""Units in the last place: what numbers that are meant to be equal may differ by."""


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KlEstimator) -> Tensor:
    """KL(pi || ref) of each token from the one sample there is, with d = log pi - log ref (Schulman 2020).

    k1: d, unbiased, of high variance, negative at times. k2: d^2/2, biased, low variance. k3: e^-d + d - 1, unbiased
    for tokens that pi sampled, and never negative. The gradient goes through, for a KL term in a loss.

    logprobs, ref_logprobs: nats, of any one shape. Returns nats, in that shape.
    """
    return _ESTIMATORS[estimator](logprobs - ref_logprobs)


@torch.no_grad()
def penalized_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """r_t = -kl_coef KL_t, and the score on top at the completion's last token (Ziegler et al. 2019, eq. 2).

    scores: (N,). kl: (N, T) nats. mask: (N, T). Returns (N, T). An empty completion has no token for its score.
    """
    rewards = -kl_coef * _kept(kl, mask)
    places = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(mask.bool(), places, -1).amax(dim=1, keepdim=True)
    return rewards + (places == last) * scores[:, None]


@torch.no_grad()
def penalize_missing_end(scores: Tensor, finished: Tensor, penalty: float) -> Tensor:
    """The score, less `penalty` where a completion did not end by itself. scores, finished (bool): (N,)."""
    return scores - penalty * (~finished).to(scores.dtype)


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, end_values: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (Schulman et al. 2016, eq. 16), and what the critic is to learn.

    delta_t = r_t + gamma V_{t+1} - V_t,  A_t = delta_t + gamma lam A_{t+1},  R_t = A_t + V_t

    t+1 is the next token of the mask. After the last one A is 0, and so is V, where a completion ends its episode;
    where it was cut off, V is that of the state it was cut off in (partial-episode bootstrapping, Pardo et al. 2018).

    rewards, values, mask: (N, T); V_t is the value before token t is sampled. end_values: (N,) V after the last token;
    absent: 0. Returns advantages and returns, (N, T).
    """
    advantages = torch.zeros_like(values)
    next_advantage = torch.zeros_like(values[:, 0])
    next_value = torch.zeros_like(values[:, 0]) if end_values is None else end_values
    for t in reversed(range(values.shape[1])):
        inside = mask[:, t].bool()
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(inside, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(inside, values[:, t], next_value)
        advantages[:, t] = next_advantage
    advantages = _kept(advantages, mask)
    return advantages, advantages + _kept(values, mask)


@torch.no_grad()
def whiten(values: Tensor, mask: Tensor, terms: Tensor | None = None) -> Tensor:
    """(v - mean) / std over all tokens of the mask at once, which must be those of the global batch.

    values, mask: (N, T). terms: (N, T) what the values are differences of, whose rounding is no signal. Returns (N, T).
    Values that are all alike, a single one too, become exactly 0.
    """
    mean = _masked_mean(values, mask)
    variance = _masked_mean((values - mean).square(), mask)
    white = _kept((values - mean) * torch.rsqrt(variance + _WHITEN_EPSILON), mask)
    largest = torch.zeros(()) if terms is None else _kept(terms, mask).abs().amax()
    return torch.where(_differ(values, mask, largest), white, 0.0)


@torch.no_grad()
def group_advantages(scores: Tensor, scored: Tensor | None = None, epsilon: float = 1e-4) -> Tensor:
    """(r - mean) / (std + epsilon) within each prompt's group (Shao et al. 2024, section 4.1.2).

    std is that of a sample (G - 1), as in TRL. scores, and what is returned: (P, G). scored: (P, G), 1 where there is a
    score; the others are in neither mean nor std, and get 0. A group of equal scores gets exactly 0: a mean that rounds
    would leave it a difference, which Adam makes a step of full size.
    """
    scored = torch.ones_like(scores) if scored is None else scored
    count = scored.sum(dim=1, keepdim=True)
    mean = _kept(scores, scored).sum(dim=1, keepdim=True) / count.clamp(min=1)
    deviations = _kept(scores - mean, scored)
    std = (deviations.square().sum(dim=1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(groups_differ(scores, scored)[:, None], deviations / (std + epsilon), 0.0)


@torch.no_grad()
def groups_differ(scores: Tensor, scored: Tensor) -> Tensor:
    """(P,) whether a group's scores differ by more than rounding. scores, scored: (P, G)."""
    return _differ(scores, scored, torch.zeros(()), dim=1)


@dataclass(frozen=True)
class RunningMoments:
    """Count, mean and sum of squared deviations of all that was seen so far, so that nothing of it need be kept."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def after(self, values: Tensor) -> RunningMoments:
        """With these seen as well, of any shape (the pairwise update of Chan et al. 1983)."""
        seen = values.double().flatten()
        if not len(seen):
            return self
        count, mean = self.count + len(seen), seen.mean().item()
        apart, squares = mean - self.mean, (seen - mean).square().sum().item()
        return RunningMoments(
            count=count,
            mean=self.mean + apart * len(seen) / count,
            squares=self.squares + squares + apart**2 * self.count * len(seen) / count,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation; 1 where nothing has varied so far, so that there is nothing to divide by."""
        found = math.sqrt(self.squares / self.count) if self.count else 0.0
        return found if found > _NO_DEVIATION * max(1.0, abs(self.mean)) else 1.0


def adapt_kl_coef(coef: float, kl: float, target: float, completions: int, horizon: int) -> float:
    """The weight of the KL penalty after a step: coef (1 + clip(KL/target - 1, -0.2, 0.2) n/H).

    Proportional control in log space, clipped so that one noisy step moves little (Ziegler et al. 2019, section 2.2).

    kl, target: nats per token. completions, horizon: n and H, in completions.
    """
    error = min(max(kl / target - 1, -_CONTROLLER_CLIP), _CONTROLLER_CLIP)
    return coef * (1 + error * completions / horizon)


@torch.no_grad()
def importance_weights(old_logprobs: Tensor, rollout_logprobs: Tensor, cap: float) -> Tensor:
    """min(pi_old / pi_rollout, cap) of each token: vLLM's distribution differs from the trainer's (Yao et al. 2025).

    old_logprobs: by the trainer, before its updates. rollout_logprobs: at sampling time. Any one shape, nats.
    """
    return (old_logprobs - rollout_logprobs).exp().clamp(max=cap)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 one that says the same of everything.

    values, returns, mask: (N, T). Returns a scalar; 0 where the returns do not vary, so that there is nothing to know.
    """
    variance, unexplained = (_masked_variance(these, mask) for these in (returns, returns - values))
    explained = 1 - unexplained / variance.clamp(min=torch.finfo(variance.dtype).tiny)
    return torch.where(_differ(returns, mask, torch.zeros(())), explained, 0.0)


def _kept(values: Tensor, mask: Tensor) -> Tensor:
    """0 outside the mask, whatever stood there: 0 x NaN would be NaN."""
    return torch.where(mask.bool(), values, torch.zeros_like(values))


def _differ(values: Tensor, mask: Tensor, largest: Tensor, dim: int | None = None) -> Tensor:
    """Whether values of the mask differ by more than rounding, of them or of what is `largest`; True where one is NaN.

    dim: along which; absent: all.
    """
    dims = tuple(range(values.ndim)) if dim is None else (dim,)
    low = torch.where(mask.bool(), values, torch.inf).amin(dim=dims)
    high = torch.where(mask.bool(), values, -torch.inf).amax(dim=dims)
    size = torch.maximum(torch.maximum(low.abs(), high.abs()), largest.to(values.dtype))
    return ~(high - low <= _ROUNDING * torch.finfo(values.dtype).eps * size)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """0 of an empty mask."""
    return _kept(values, mask).sum() / mask.sum().clamp(min=1)


def _masked_variance(values: Tensor, mask: Tensor) -> Tensor:
    return _masked_mean((values - _masked_mean(values, mask)).square(), mask)
