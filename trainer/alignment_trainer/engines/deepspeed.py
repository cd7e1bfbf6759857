"""DeepSpeed ZeRO-2 and ZeRO-3 (Rajbhandari et al. 2020): state spread over ranks. NCCL on GPUs, gloo on CPUs.

Precision bf16 is DeepSpeed's `torch_autocast`: fp32 masters, products and gathers in bf16. Its own bf16 mode would
round the policy's weights, and the policy would differ from its reference before the first step.
"""

import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment_api.derived.memory import BUCKET
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
from alignment_trainer.engines.state import SavedState, take_turns, to_cpu
from alignment_trainer.model.heads import PackedModel
from alignment_trainer.model.precision import CASTS, autocast
from alignment_trainer.model.weights import Weights, fill, replace_parameters
from alignment_trainer.process import distributed

MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedEngine(Engine):
    """One shard of a model that all ranks train together."""

    def __init__(
        self,
        scorer: PackedModel,
        options: OptimizerOptions,
        precision: str,
        device: torch.device,
        stage: int,
        weights: Weights | None = None,
    ) -> None:
        self.device = device
        self._precision, self._stage = precision, stage
        parameters = sum(parameter.numel() for parameter in scorer.parameters())
        config = zero_config(options, precision, stage, parameters, overlap=device.type != "cpu")
        _prepare(device)
        if weights is not None:
            _LOAD[stage](scorer, weights, device, config)
        self._parameters = [(scorer.hub_names[name], parameter) for name, parameter in scorer.named_parameters()]
        self._zero = _initialize(scorer.to(device), options, config)
        self._steps = 0
        self._start_moments()

    def forward(self, batch: PackedBatch) -> Tensor:
        self._zero.train(torch.is_grad_enabled())
        with autocast(self.device, self._precision):
            result: Tensor = self._zero(batch.to(self.device))
        return result

    def backward(self, loss: Tensor) -> None:
        """DeepSpeed averages over ranks where the loop wants the sum."""
        self._zero.backward(all_or_nothing(loss) * distributed.world_size())

    def step(self, learning_rate: float) -> float:
        """DeepSpeed itself leaves out a step whose norm is not finite, and drops its gradients."""
        for group in self._zero.optimizer.param_groups:
            group["lr"] = learning_rate
        self._zero.step()
        self._steps += self._zero.was_step_applied()
        return float(self._zero.get_global_grad_norm())

    @property
    def steps(self) -> int:
        return self._steps

    def full_state(self) -> Iterator[tuple[str, ParameterState | None]]:
        for number, (name, parameter) in enumerate(self._parameters):
            tensors = {"weight": self._full(parameter), **{key: self._full(parameter, key) for key in MOMENTS}}
            keep = take_turns(number)
            yield name, ParameterState(**{key: to_cpu(t) for key, t in tensors.items()}) if keep else None

    def full_weights(self) -> Iterator[tuple[str, Tensor | None]]:
        for name, parameter in self._parameters:
            weight = self._full(parameter)
            yield name, to_cpu(weight) if distributed.rank() == 0 else None

    def load(self, folder: Path, prefix: str = "") -> None:
        from deepspeed.utils import (  # type: ignore[import-untyped]
            safe_set_full_optimizer_state,
            safe_set_local_optimizer_state,
        )

        saved = SavedState(folder, prefix)
        self._steps = saved.steps
        for state in self._zero.optimizer.optimizer.state.values():
            state["step"].fill_(float(saved.steps))
        for name, parameter in self._parameters:
            for key in MOMENTS:
                if self._stage == 3:
                    own = _own_slice(parameter, partial(saved.read, key, name))
                    safe_set_local_optimizer_state(parameter, own.to(self.device), key)
                else:
                    safe_set_full_optimizer_state(parameter, saved.get(key, name).to(self.device), key)

    def _full(self, parameter: nn.Parameter, moment: str | None = None) -> Tensor:
        """The whole master or moment of a parameter that is spread over ranks, on every rank; collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if moment is None:
            value: Tensor = safe_get_full_fp32_param(parameter)
        else:
            value = safe_get_full_optimizer_state(parameter, moment)
        return value

    def _start_moments(self) -> None:
        """AdamW's own beginning, made now: DeepSpeed leaves it to the first step, and a resumed run has none."""
        zero = self._zero.optimizer
        flat = zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        for partition in flat:
            zero.optimizer.state[partition] = {
                "step": torch.zeros((), device=partition.device),
                **{key: torch.zeros_like(partition) for key in MOMENTS},
            }
        if self._stage == 2:
            zero._lazy_init_hp_params_optimizer_state()


def _prepare(device: torch.device) -> None:
    """What DeepSpeed looks for when it is imported."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    distributed.join_alone(device)
    os.environ.setdefault("LOCAL_RANK", str(device.index or 0))  # torchrun's, which it demands of a rank alone, too
    import deepspeed  # type: ignore[import-untyped]

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Its shared-memory kernel for CPUs is compiled at start-up: a minute, and a compiler that a trainer image lacks.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _load_whole(scorer: PackedModel, weights: Weights, device: torch.device, _config: dict[str, Any]) -> None:
    """Gives this rank all numbers: ZeRO-2 computes with whole weights."""
    fill((scorer,), scorer.hub_names, weights, lambda _: device)


def _load_slices(scorer: PackedModel, weights: Weights, device: torch.device, config: dict[str, Any]) -> None:
    """Gives this rank its slice of every parameter; of one at a time a whole one stands empty while it is cut."""
    import deepspeed

    def spread(name: str, parameter: nn.Parameter) -> nn.Parameter:
        own = nn.Parameter(torch.empty(parameter.shape, device=device), parameter.requires_grad)
        deepspeed.zero.Init(module=nn.ParameterList([own]), config_dict_or_path=config)
        own.ds_tensor.copy_(_own_slice(own, partial(weights.read, scorer.hub_names[name])))  # type: ignore[attr-defined]
        return own

    replace_parameters((scorer,), spread)


_LOAD = {2: _load_whole, 3: _load_slices}
"""By ZeRO's stage."""


def _initialize(scorer: PackedModel, options: OptimizerOptions, config: dict[str, Any]) -> Any:
    """DeepSpeed's engine around the scorer, its weights as they are now."""
    import deepspeed

    groups = parameter_groups(scorer, options.weight_decay, _dimensions)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=ADAM_BETAS, eps=ADAM_EPSILON, fused=True)
    engine, *_ = deepspeed.initialize(model=scorer, optimizer=optimizer, config=config, dist_init_required=False)
    return engine


def _dimensions(parameter: nn.Parameter) -> int:
    """Of the whole parameter: what stands for one that is spread is flat."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def zero_config(
    options: OptimizerOptions, precision: str, stage: int, parameters: int, overlap: bool = False
) -> dict[str, Any]:
    """DeepSpeed's configuration. Its batch sizes are placeholders: the loop calls `step` where a batch ends.

    parameters: of the model. A bucket of gradients is allocated whole, so that it has no more; DeepSpeed's own is 2 GB.
    overlap: communicate on a stream of its own while the rest is computed, which CPUs have not. Run on one GPU so far.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": options.max_grad_norm,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": overlap,
            "reduce_bucket_size": min(parameters, BUCKET),
        },
        "torch_autocast": {"enabled": CASTS[precision], "dtype": "bfloat16"},
    }


def _own_slice(parameter: nn.Parameter, read: Callable[[int, int], Tensor]) -> Tensor:
    """This rank's slice of a parameter that is spread over ranks, flat; slices are equal, and the last ones padded."""
    width, whole = parameter.ds_tensor.numel(), parameter.ds_numel  # type: ignore[attr-defined]
    begin = min(width * distributed.rank(), whole)
    numbers = read(begin, min(begin + width, whole))
    return torch.nn.functional.pad(numbers, (0, width - len(numbers)))
