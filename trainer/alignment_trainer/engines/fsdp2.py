"""torch's own sharding, `fully_shard` (FSDP2, Zhao et al. 2023): state spread over ranks by rows of each parameter.

A rank holds its rows of weights, gradients and moments in fp32. A decoder layer is gathered while it is computed, and
its gradient is summed in fp32 and given back by rows after every micro-batch. Precision bf16 gathers the layers in
bf16, which is what autocast computes in; embeddings, the last norm and the head are gathered as they are.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from alignment_trainer.engines.adamw import AdamWEngine, whole
from alignment_trainer.engines.base import (
    OptimizerOptions,
    ParameterState,
    parameter_groups,
)
from alignment_trainer.engines.state import SavedState, take_turns, to_cpu
from alignment_trainer.model.cut import layers_of
from alignment_trainer.model.heads import PackedModel
from alignment_trainer.model.precision import CASTS
from alignment_trainer.model.products import untrained_products
from alignment_trainer.model.weights import Weights
from alignment_trainer.process import distributed

MOMENTS = ("exp_avg", "exp_avg_sq")


class Fsdp2Engine(AdamWEngine):
    """One rank's rows of a model that all ranks train together."""

    def __init__(
        self,
        scorer: PackedModel,
        options: OptimizerOptions,
        precision: str,
        device: torch.device,
        weights: Weights | None = None,
    ) -> None:
        distributed.join_alone(device)
        for parameter in untrained_products(scorer) if CASTS[precision] else ():
            parameter.data = parameter.data.bfloat16()
        _shard(scorer, precision, device)
        held: list[tuple[str, DTensor]] = [
            (scorer.hub_names[name], parameter)  # type: ignore[misc]
            for name, parameter in scorer.named_parameters()
        ]
        if weights is not None:
            for name, sharded in held:
                _put(sharded, weights.read(name, *_span(sharded)))
        self._parameters = [(name, sharded) for name, sharded in held if sharded.requires_grad]
        super().__init__(scorer, options, precision, device, parameter_groups(scorer, options.weight_decay))

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._parameters)

    def full_state(self) -> Iterator[tuple[str, ParameterState | None]]:
        for number, (name, parameter) in enumerate(self._parameters):
            adam = self._optimizer.state.get(parameter) or dict.fromkeys(MOMENTS, torch.zeros_like(parameter))
            tensors = {"weight": whole(parameter), **{key: whole(adam[key]) for key in MOMENTS}}
            keep = take_turns(number)
            yield name, ParameterState(**{key: to_cpu(t) for key, t in tensors.items()}) if keep else None

    def full_weights(self) -> Iterator[tuple[str, Tensor | None]]:
        for name, parameter in self._parameters:
            weight = whole(parameter)
            yield name, to_cpu(weight) if distributed.rank() == 0 else None

    def load(self, folder: Path, prefix: str = "") -> None:
        saved = SavedState(folder, prefix)
        self._steps = saved.steps
        for name, parameter in self._parameters:
            state: dict[str, Tensor] = {"step": torch.tensor(float(saved.steps), device=self.device)}
            for key in MOMENTS:
                moment = torch.zeros_like(parameter)
                _put(moment, saved.read(key, name, *_span(parameter)))
                state[key] = moment
            self._optimizer.state[parameter] = state


def _shard(scorer: PackedModel, precision: str, device: torch.device) -> None:
    """Leaves this rank its rows of every parameter, on the device; on `meta` there are no numbers in them yet.

    The gradient of a step is the sum over the ranks, where FSDP would take the mean.
    """
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    layer = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if CASTS[precision] else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the residual stream stays fp32, as under autocast alone
    )
    for each in layers_of(scorer.body, scorer.body.config):
        fully_shard(each, mesh=mesh, mp_policy=layer)
    fully_shard(scorer, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def placed(tensor: Tensor) -> Tensor:
        return torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device)

    scorer._apply(placed)  # type: ignore[no-untyped-call]


def _span(parameter: DTensor) -> tuple[int, int]:
    """Where this rank's rows begin and end in the parameter laid flat; ranks have equal rows but for the last ones."""
    rows = -(-parameter.shape[0] // distributed.world_size())
    width = parameter.numel() // parameter.shape[0]
    begin = min(rows * distributed.rank(), parameter.shape[0]) * width
    return begin, begin + _rows(parameter).numel()


def _put(parameter: Tensor, numbers: Tensor) -> None:
    rows = _rows(parameter)
    rows.copy_(numbers.view(rows.shape))


def _rows(parameter: Tensor) -> Tensor:
    with torch.no_grad():
        local: Tensor = parameter.to_local()  # type: ignore[attr-defined]
    return local
