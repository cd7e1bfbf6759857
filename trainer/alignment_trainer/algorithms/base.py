"""What an offline algorithm is: what its model says of a row, a loss over that, metrics, held-out figures."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment_api.contract.algorithms import Options
from alignment_api.contract.status import Evaluated
from alignment_trainer.data.examples import Example, PromptGroup
from alignment_trainer.data.packing import on_device
from alignment_trainer.model.tasks import ModelTask

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class ScoredRows:
    """Rows as models score them: what a loss sees. The first three are of shape (rows, completions).

    scores: by the model being trained. reference: by the frozen one; zeros where the algorithm needs none.
    lengths: tokens of each completion that are trained on. labels: (rows,), 1 for a desirable completion; of no rows
    where the format has none. before: what the prepass found, a scalar; 0 where the algorithm has none.
    """

    scores: Tensor
    reference: Tensor
    lengths: Tensor
    labels: Tensor = field(default_factory=lambda: torch.zeros(0))
    before: Tensor = field(default_factory=lambda: torch.zeros(()))

    def rows(self, places: list[int]) -> "ScoredRows":
        """Some of them. All have labels."""
        whole = (self.scores, self.reference, self.lengths, self.labels)
        scores, reference, lengths, labels = (values[places] for values in whole)
        return ScoredRows(scores, reference, lengths, labels, self.before)

    def to(self, device: torch.device) -> "ScoredRows":
        return ScoredRows(**{name: on_device(value, device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class LossAndMetrics:
    """Values of each row, shape (rows,): the loss with its gradient, metrics without. The caller weighs them."""

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

    learned: ClassVar[slice] = slice(None)
    """Which of a row's completions `loss` sees."""
    prepass: ClassVar[slice | None] = None
    """Which of them `before` sees: those of the whole step are scored, without a gradient, before any backward pass."""

    def group(self, example: Example) -> PromptGroup:
        """The prompt and the completions that are learned from."""
        return example.group.of(self.learned)

    def before(self, rows: ScoredRows) -> Tensor:
        """What the loss of every row needs to know of the step's prepass, a scalar without a gradient.

        rows: all of the step, by their completions of `prepass`.
        """
        return torch.zeros(())

    def weights(self, lengths: Tensor) -> Tensor:
        """Of each row in the mean over the step, (rows,), 1 in sum.

        lengths: (rows, completions) of the whole step, as in ScoredRows.
        """
        return torch.full((len(lengths),), 1 / len(lengths))

    @abstractmethod
    def loss(self, batch: ScoredRows) -> LossAndMetrics:
        """Loss and metrics of each row."""

    @abstractmethod
    def evaluated(self, rows: ScoredRows, prompts: Sequence[Hashable]) -> Evaluated:
        """Held-out figures of a model, with intervals.

        prompts: (rows,) what the rows of one prompt share; intervals allow for it.
        """
