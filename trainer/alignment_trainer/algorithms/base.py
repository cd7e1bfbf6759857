"""What an offline algorithm is: what its model says of a row, a loss over that, metrics, held-out figures."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
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
    where the format has none. before: what the prepass found, a scalar; 0 where the algorithm has none. own_weights:
    (rows,) what each row says it weighs, or 1 of all. margins: (rows,) of the first completion's reward above the
    second's, or of all; NaN where a row has none.
    """

    scores: Tensor
    reference: Tensor
    lengths: Tensor
    labels: Tensor = field(default_factory=lambda: torch.zeros(0))
    before: Tensor = field(default_factory=lambda: torch.zeros(()))
    own_weights: Tensor = field(default_factory=lambda: torch.ones(()))
    margins: Tensor = field(default_factory=lambda: torch.full((), torch.nan))

    def rows(self, places: list[int]) -> "ScoredRows":
        """Some of them. All have labels, weights and margins."""
        some = {name: values[places] for name, values in vars(self).items() if name != "before"}
        return replace(self, **some)

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

    def counted(self, lengths: Tensor) -> Tensor:
        """What each row counts in the step before its own weight, (rows,): 1, or the tokens that are trained on.

        lengths: (rows, completions) of the whole step, as in ScoredRows.
        """
        return torch.ones(len(lengths))

    def weights(self, rows: ScoredRows) -> Tensor:
        """Of each row in the mean over the step, fp64 (rows,), 1 in sum: what it counts times its own weight, over the
        sum of these. A row of weight 2 is so the row given twice. 0 for all where all weigh nothing.
        """
        counted = self.counted(rows.lengths).double() * rows.own_weights
        return counted / counted.sum().clamp(min=torch.finfo(counted.dtype).tiny)

    @abstractmethod
    def loss(self, batch: ScoredRows) -> LossAndMetrics:
        """Loss and metrics of each row."""

    @abstractmethod
    def evaluated(self, rows: ScoredRows, prompts: Sequence[Hashable]) -> Evaluated:
        """Held-out figures of a model, with intervals.

        prompts: (rows,) what the rows of one prompt share; intervals allow for it.
        """
