"""Identity preference optimization."""

from dataclasses import dataclass

from torch import Tensor

from alignment_api.contract.algorithms import Ipo as IpoOptions
from alignment_trainer.algorithms.base import ScoredRows
from alignment_trainer.algorithms.pairs import LanguagePairs, log_ratios


@dataclass(frozen=True)
class Ipo(LanguagePairs):
    """Azar et al. 2024."""

    options: IpoOptions

    def losses(self, pairs: ScoredRows) -> Tensor:
        chosen, rejected = log_ratios(pairs, self.options.length_normalized).unbind(1)
        return ipo_loss(chosen - rejected, self.options.beta)

    def rewards(self, pairs: ScoredRows) -> Tensor:
        """Beta times the log-ratio to the reference, so that a margin of 1/2 is what the loss asks for."""
        return self.options.beta * log_ratios(pairs, self.options.length_normalized)


def ipo_loss(margin: Tensor, beta: float) -> Tensor:
    """(margin - 1 / (2 beta))^2                                      (Azar et al. 2024, eq. 17)

    margin: nats, (w - w_ref) - (l - l_ref) of each pair, shape (pairs,). Returns the loss of each pair, shape (pairs,).
    """
    return (margin - 1 / (2 * beta)).square()
