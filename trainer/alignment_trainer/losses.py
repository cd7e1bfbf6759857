"""Losses as functions of log-probabilities. Imports only torch."""

from dataclasses import dataclass

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
