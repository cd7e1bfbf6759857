"""One process, plain torch: no sharding, nothing between the loop and autograd."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment_trainer.engines.adamw import AdamWEngine
from alignment_trainer.engines.base import (
    OptimizerOptions,
    ParameterState,
    parameter_groups,
)
from alignment_trainer.engines.state import SavedState, to_cpu
from alignment_trainer.model.compiled import compile_layers
from alignment_trainer.model.heads import PackedModel
from alignment_trainer.model.precision import CASTS
from alignment_trainer.model.products import trained_products, untrained_products
from alignment_trainer.model.weights import Weights, fill


class PlainEngine(AdamWEngine):
    """Every weight in this process. In bf16 those of products are cast once a step and not at each use; the numbers are
    those of autocast."""

    def __init__(
        self,
        scorer: PackedModel,
        options: OptimizerOptions,
        precision: str,
        device: torch.device,
        weights: Weights | None = None,
    ) -> None:
        if weights is not None:
            halves = untrained_products(scorer) if CASTS[precision] else ()
            fill((scorer,), scorer.hub_names, weights, lambda _: device, halves)
        model = compile_layers(scorer.to(device).train(), device)
        groups: list[dict[str, Any]] = parameter_groups(scorer, options.weight_decay)
        self._masters = Masters(scorer if CASTS[precision] else nn.Module())
        groups = [group | {"params": list(map(self._masters.of, group["params"]))} for group in groups]
        super().__init__(model, options, precision, device, groups)

    def _moved(self) -> None:
        self._masters.cast()

    def full_state(self) -> Iterator[tuple[str, ParameterState | None]]:
        for name, parameter in self._weights():
            adam = self._optimizer.state.get(parameter)
            zeros = torch.zeros_like(parameter)
            yield (
                name,
                ParameterState(
                    weight=to_cpu(parameter),
                    exp_avg=to_cpu(adam["exp_avg"] if adam else zeros),
                    exp_avg_sq=to_cpu(adam["exp_avg_sq"] if adam else zeros),
                ),
            )

    def full_weights(self) -> Iterator[tuple[str, Tensor | None]]:
        for name, parameter in self._weights():
            yield name, to_cpu(parameter)

    def load(self, folder: Path, prefix: str = "") -> None:
        saved = SavedState(folder, prefix)
        self._steps = saved.steps
        for name, parameter in self._weights():
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(saved.steps), device=self.device),
                "exp_avg": saved.get("exp_avg", name).to(self.device),
                "exp_avg_sq": saved.get("exp_avg_sq", name).to(self.device),
            }

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._scorer.named_parameters():
            if parameter.requires_grad:
                yield self._scorer.hub_names[name], self._masters.of(parameter)


class Masters:
    """fp32 weights beside the bf16 ones that products are computed with.

    Gradients come in bf16, as autocast's do, and are summed in fp32 as they come.
    """

    def __init__(self, module: nn.Module) -> None:
        self._of = {parameter: _cast(parameter) for parameter in trained_products(module)}

    def of(self, parameter: nn.Parameter) -> Tensor:
        """The parameter itself where it has no master."""
        return self._of.get(parameter, parameter)

    @torch.no_grad()
    def cast(self) -> None:
        """Gives the parameters the values that the masters have now."""
        if self._of:
            torch._foreach_copy_(list(self._of), list(self._of.values()))


def _cast(parameter: nn.Parameter) -> Tensor:
    """The fp32 master of a parameter that is bf16 from now on."""
    master = parameter.detach().requires_grad_()
    parameter.data = master.detach().bfloat16()

    def add_up(_: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    parameter.register_post_accumulate_grad_hook(add_up)  # type: ignore[no-untyped-call]
    return master
