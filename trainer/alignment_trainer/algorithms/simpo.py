"""Simple preference optimization."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import logsigmoid

from alignment_api.contract.algorithms import Simpo as SimpoOptions
from alignment_trainer.algorithms.base import ScoredRows
from alignment_trainer.algorithms.pairs import LanguagePairs, per_token


@dataclass(frozen=True)
class Simpo(LanguagePairs):
    """Meng et al. 2024."""

    options: SimpoOptions

    def losses(self, pairs: ScoredRows) -> Tensor:
        chosen, rejected = per_token(pairs).unbind(1)
        return simpo_loss(chosen - rejected, self.options.beta, self.options.gamma)

    def rewards(self, pairs: ScoredRows) -> Tensor:
        """Beta times the mean log-prob (Meng et al. 2024, eq. 4)."""
        return self.options.beta * per_token(pairs)


def simpo_loss(margin: Tensor, beta: float, gamma: float) -> Tensor:
    """-log s(beta margin - gamma)                                    (Meng et al. 2024, eq. 6)

    margin: nats per token, w/|w| - l/|l| of each pair, shape (pairs,). Returns the loss of each pair, shape (pairs,).
    """
    return -logsigmoid(beta * margin - gamma)
