"""Direct preference optimization."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from alignment_api.contract.algorithms import Dpo as DpoOptions
from alignment_trainer.algorithms.base import ScoredRows
from alignment_trainer.algorithms.pairs import LanguagePairs, log_ratios, per_token


@dataclass(frozen=True)
class Dpo(LanguagePairs):
    """Rafailov et al. 2023; with its options conservative, robust, RPO, and near CPO."""

    options: DpoOptions

    def losses(self, pairs: ScoredRows) -> Tensor:
        """With `rpoAlpha` a: + a NLL(w) / |w|    (Pang et al. 2024, eq. 1)"""
        options, chosen, rejected = self.options, *log_ratios(pairs, self.options.length_normalized).unbind(1)
        loss = dpo_loss(chosen - rejected, options.beta, options.label_smoothing, options.robust)
        return loss - options.rpo_alpha * per_token(pairs)[:, 0] if options.rpo_alpha else loss

    def rewards(self, pairs: ScoredRows) -> Tensor:
        """Beta times the log-ratio to the reference (Rafailov 2023, eq. 5)."""
        return self.options.beta * log_ratios(pairs, self.options.length_normalized)


def dpo_loss(margin: Tensor, beta: float, label_smoothing: float = 0.0, robust: bool = False) -> Tensor:
    """Direct preference optimization, conservative when `label_smoothing` > 0, or robust.

    -(1 - e) log s(h) - e log s(-h),  h = beta margin                (Rafailov 2023, eq. 7; Mitchell 2023)
    [-(1 - e) log s(h) + e log s(-h)] / (1 - 2e)                      robust (Chowdhury et al. 2024, section 3)

    margin: nats, (w - w_ref) - (l - l_ref) of each pair, shape (pairs,). Returns the loss of each pair, shape (pairs,).
    """
    kept, flipped = -logsigmoid(beta * margin), -logsigmoid(-beta * margin)
    if robust:
        return ((1 - label_smoothing) * kept - label_smoothing * flipped) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * kept + label_smoothing * flipped
