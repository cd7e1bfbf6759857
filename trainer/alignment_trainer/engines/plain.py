"""One process, plain torch: no sharding, nothing between the loop and autograd."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from alignment_trainer.data.packing import PackedBatch
from alignment_trainer.engines.base import (
    ADAM_BETAS,
    ADAM_EPSILON,
    Engine,
    OptimizerOptions,
    ParameterState,
    all_or_nothing,
    parameter_groups,
)
from alignment_trainer.engines.state import SavedState, to_cpu
from alignment_trainer.model.heads import PackedModel
from alignment_trainer.model.precision import autocast


class PlainEngine(Engine):
    """AdamW on fp32 weights, forward under autocast where the precision is bf16."""

    def __init__(self, scorer: PackedModel, options: OptimizerOptions, precision: str, device: torch.device) -> None:
        self.device = device
        self._scorer = scorer.to(device).train()
        self._precision, self._options = precision, options
        self._optimizer = torch.optim.AdamW(
            parameter_groups(scorer, options.weight_decay), lr=0.0, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True
        )
        self._steps = 0

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
        norm = torch.nn.utils.clip_grad_norm_(self._scorer.parameters(), self._options.max_grad_norm).item()
        if math.isfinite(norm):
            self._optimizer.step()
            self._steps += 1
        self._optimizer.zero_grad(set_to_none=True)
        return norm

    @property
    def steps(self) -> int:
        return self._steps

    def full_state(self) -> Iterator[tuple[str, ParameterState | None]]:
        for name, parameter in self._scorer.named_parameters():
            adam = self._optimizer.state.get(parameter)
            zeros = torch.zeros_like(parameter)
            yield (
                self._scorer.hub_names[name],
                ParameterState(
                    weight=to_cpu(parameter),
                    exp_avg=to_cpu(adam["exp_avg"] if adam else zeros),
                    exp_avg_sq=to_cpu(adam["exp_avg_sq"] if adam else zeros),
                ),
            )

    def full_weights(self) -> Iterator[tuple[str, Tensor | None]]:
        for name, parameter in self._scorer.named_parameters():
            yield self._scorer.hub_names[name], to_cpu(parameter)

    def load(self, folder: Path, prefix: str = "") -> None:
        saved = SavedState(folder, prefix)
        self._steps = saved.steps
        for name, parameter in self._scorer.named_parameters():
            hub_name = self._scorer.hub_names[name]
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(saved.steps), device=self.device),
                "exp_avg": saved.get("exp_avg", hub_name).to(self.device),
                "exp_avg_sq": saved.get("exp_avg_sq", hub_name).to(self.device),
            }
