"""What an offline algorithm is: what its model says of a row, a loss over that, metrics, held-out figures."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alignment_api.contract.status import Evaluated
from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.packing import PromptGroup
from alignment_trainer.model.tasks import ModelTask

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class LossAndMetrics:
    """Values of each row, shape (rows,): the loss with its gradient, metrics without. The caller averages globally."""

    loss: Tensor
    metrics: dict[str, Tensor]


class OfflineAlgorithm(ABC):
    """Learns from rows that exist before training.

    task: of the model that is trained. Its numbers, summed over each completion, are the scores below: log-probs (nats)
    of a language model, rewards of a reward model. needs_reference: whether the loss compares with a frozen model.
    """

    task: ClassVar[ModelTask]
    needs_reference: ClassVar[bool]

    @abstractmethod
    def group(self, example: PreferenceExample) -> PromptGroup:
        """The prompt and the completions that go through the model."""

    @abstractmethod
    def loss(self, scores: Tensor, reference: Tensor) -> LossAndMetrics:
        """Loss and metrics of each row.

        scores: (rows, completions) by the model being trained.
        reference: the same by the frozen reference; zeros where `needs_reference` is False.
        """

    @abstractmethod
    def evaluated(self, scores: Float32, reference: Float32, prompts: Sequence[Hashable]) -> Evaluated:
        """Held-out figures of a model, with intervals. Shapes as in `loss`.

        prompts: (rows,) what the rows of one prompt share; intervals allow for it.
        """


def share_positive(margin: Tensor) -> Tensor:
    """1 where positive, 0 where negative, a half for a tie; the mean is the share."""
    return (margin.sign() + 1) / 2


def positive(values: Float64) -> Float64:
    """The same of arrays."""
    return (np.sign(values) + 1) / 2
