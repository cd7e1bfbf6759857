"""What an offline algorithm is: what its model says of a row, a loss over that, metrics, held-out figures."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from alignment_api.contract.algorithms import Options
from alignment_api.contract.status import Evaluated
from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.packing import PromptGroup
from alignment_trainer.model.tasks import ModelTask

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class ScoredRows:
    """Rows as models score them: what a loss sees. All of shape (rows, completions).

    scores: by the model being trained. reference: by the frozen one; zeros where the algorithm needs none.
    lengths: tokens of each completion.
    """

    scores: Tensor
    reference: Tensor
    lengths: Tensor


@dataclass(frozen=True)
class LossAndMetrics:
    """Values of each row, shape (rows,): the loss with its gradient, metrics without. The caller averages globally."""

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class OfflineAlgorithm(ABC):
    """Learns from rows that exist before training.

    options: as the spec has them. task: of the model that is trained; its numbers, summed over each completion, are the
    scores: log-probs (nats) of a language model, rewards of a reward model.
    """

    options: Options
    task: ClassVar[ModelTask]

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a frozen model."""
        return self.options.needs_reference

    @abstractmethod
    def group(self, example: PreferenceExample) -> PromptGroup:
        """The prompt and the completions that go through the model."""

    @abstractmethod
    def loss(self, batch: ScoredRows) -> LossAndMetrics:
        """Loss and metrics of each row."""

    @abstractmethod
    def evaluated(self, rows: ScoredRows, prompts: Sequence[Hashable]) -> Evaluated:
        """Held-out figures of a model, with intervals.

        prompts: (rows,) what the rows of one prompt share; intervals allow for it.
        """
