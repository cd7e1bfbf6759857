"""Odds-ratio preference optimization."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from alignment_api.contract.algorithms import Orpo as OrpoOptions
from alignment_trainer.algorithms.base import ScoredRows
from alignment_trainer.algorithms.pairs import LanguagePairs, per_token

_CERTAIN = -(2.0**-23)
"""Nats per token: the least that fp32 tells from a probability of 1; log odds of 15.9."""


@dataclass(frozen=True)
class Orpo(LanguagePairs):
    """Hong et al. 2024."""

    options: OrpoOptions

    def losses(self, pairs: ScoredRows) -> Tensor:
        chosen, rejected = per_token(pairs).unbind(1)
        return orpo_loss(chosen, rejected, self.options.odds_weight)

    def rewards(self, pairs: ScoredRows) -> Tensor:
        """Log odds, so that the margin is the log of the odds ratio."""
        return log_odds(per_token(pairs))


def orpo_loss(chosen: Tensor, rejected: Tensor, weight: float) -> Tensor:
    """-w - lambda log s(log odds(w) - log odds(l))                   (Hong et al. 2024, eq. 6 and 7)

    chosen, rejected: w and l, nats per token, shape (pairs,). weight: lambda. Returns the loss of each pair, (pairs,).
    """
    return -chosen - weight * logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(logprobs: Tensor) -> Tensor:
    """p - log(1 - e^p), of nats in any one shape.

    A log-prob of 0 has no finite odds: from _CERTAIN on each counts as that, in training and held out, and has no
    gradient.
    """
    below = logprobs.clamp(max=_CERTAIN)
    return below - torch.log(-torch.expm1(below))
