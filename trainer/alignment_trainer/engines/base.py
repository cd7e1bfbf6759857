"""What the loop knows of the machinery that holds weights, gradients and optimizer state."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from alignment_api.contract.spec import Training
from alignment_trainer.data.packing import PackedBatch

ADAM_BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW (Loshchilov & Hutter 2019). weight_decay: on matrices only. max_grad_norm: of the global L2 norm."""

    weight_decay: float
    max_grad_norm: float

    @classmethod
    def of(cls, training: Training) -> "OptimizerOptions":
        return cls(training.weight_decay, training.max_grad_norm)


@dataclass(frozen=True)
class ParameterState:
    """Everything that decides a parameter's next values; full shapes, fp32, on the CPU."""

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor


class Engine(ABC):
    """Forward, backward, step, save and load. The gradient of a step is the sum of what `backward` was given."""

    device: torch.device

    @abstractmethod
    def forward(self, batch: PackedBatch) -> Tensor:
        """One number for each predictor of this rank's batch, with a gradient where grad mode is on.

        Log-probs (nats) of the completion tokens by a language model; values or scores by a value model.
        """

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of this rank's scalar; the ranks' scalars are summed.

        A scalar that is not finite makes the gradient so (`all_or_nothing`).
        """

    @abstractmethod
    def step(self, learning_rate: float) -> float:
        """Clips, updates, forgets the gradient. Returns the global L2 norm before clipping.

        Where that is not finite, nothing moves but the gradient, which is forgotten; the same on every rank.
        """

    @abstractmethod
    def full_state(self) -> Iterator[tuple[str, ParameterState | None]]:
        """The state of each parameter that is trained, under its name in the model's folder; collective.

        The state is given to one rank only (parameters take turns), None to the others.
        """

    @abstractmethod
    def full_weights(self) -> Iterator[tuple[str, Tensor | None]]:
        """The weights of each parameter that is trained, likewise, to rank 0, None to the others; collective."""

    @abstractmethod
    def load(self, folder: Path, prefix: str = "") -> None:
        """Takes the optimizer's state from a folder with parts of `engines.state.draft_state`, for any number of ranks.

        Its weights are what the engine was made with (`SavedState.weights`).
        """

    @property
    @abstractmethod
    def steps(self) -> int:
        """Optimizer steps done; those that were left out do not count."""


def all_or_nothing(loss: Tensor) -> Tensor:
    """The same loss; one that is not finite has a gradient that is not either, whatever its parts are.

    Without it a mean of which one part is infinite would still have the gradient of the others.
    """
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)


def parameter_groups(
    module: nn.Module, weight_decay: float, dimensions: Callable[[nn.Parameter], int] = nn.Parameter.dim
) -> list[dict[str, object]]:
    """Weight decay on matrices; biases and norms are left alone. dimensions: of a parameter as the model has it."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices, others = [p for p in trained if dimensions(p) > 1], [p for p in trained if dimensions(p) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
