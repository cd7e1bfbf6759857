"""What an offline algorithm is: what a row sends through the model, a loss and metrics."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.packing import PromptGroup


@dataclass(frozen=True)
class LossAndMetrics:
    """Values of each row, shape (rows,): the loss with its gradient, metrics without. The caller averages globally."""

    loss: Tensor
    metrics: dict[str, Tensor]


class OfflineAlgorithm(ABC):
    """Learns from rows that exist before training."""

    needs_reference: ClassVar[bool]

    @abstractmethod
    def group(self, example: PreferenceExample) -> PromptGroup:
        """The prompt and the completions that go through the model."""

    @abstractmethod
    def loss(self, logprobs: Tensor, reference: Tensor) -> LossAndMetrics:
        """Loss and metrics of each row.

        logprobs: (rows, completions) summed log-probs (nats) by the model being trained.
        reference: the same by the frozen reference; zeros where `needs_reference` is False.
        """
