"""What engines on torch's own AdamW share: the passes and the step. They differ in where the weights lie."""

import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from alignment_trainer.data.packing import PackedBatch
from alignment_trainer.engines.base import (
    ADAM_BETAS,
    ADAM_EPSILON,
    Engine,
    OptimizerOptions,
    all_or_nothing,
)
from alignment_trainer.model.heads import PackedModel
from alignment_trainer.model.precision import autocast


class AdamWEngine(Engine):
    """Forward under autocast where the precision is bf16, AdamW on fp32 weights."""

    _steps = 0

    def __init__(
        self,
        scorer: PackedModel,
        options: OptimizerOptions,
        precision: str,
        device: torch.device,
        groups: list[dict[str, object]],
    ) -> None:
        """groups: the weights as `_weights` gives them, with their decay."""
        self.device = device
        self._scorer, self._precision, self._options = scorer, precision, options
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True)

    @abstractmethod
    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """What is trained, in fp32, under the names in the model's folder."""

    def _moved(self) -> None:
        """Called when the weights have new values."""

    def forward(self, batch: PackedBatch) -> Tensor:
        self._scorer.train(torch.is_grad_enabled())
        with autocast(self.device, self._precision):
            result: Tensor = self._scorer(batch.to(self.device))
        return result

    def backward(self, loss: Tensor) -> None:
        all_or_nothing(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        weights = [weight for _, weight in self._weights()]
        norm = whole(torch.nn.utils.clip_grad_norm_(weights, self._options.max_grad_norm)).item()
        if math.isfinite(norm):
            self._optimizer.step()
            self._moved()
            self._steps += 1
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def steps(self) -> int:
        return self._steps


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank; collective where it is spread over ranks."""
    with torch.no_grad():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
