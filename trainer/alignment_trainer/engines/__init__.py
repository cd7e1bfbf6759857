"""Engines, by the spec's `training.sharding`."""

from typing import Protocol

import torch

from alignment_trainer.engines.base import Engine, OptimizerOptions
from alignment_trainer.engines.fsdp2 import Fsdp2Engine
from alignment_trainer.engines.plain import PlainEngine
from alignment_trainer.model.heads import PackedModel
from alignment_trainer.model.weights import Weights


class EngineMaker(Protocol):
    """Makes an engine of a model; collective.

    weights: where its numbers are read; a sharding engine reads those of its shard alone. None: the model has them.
    """

    def __call__(
        self,
        scorer: PackedModel,
        options: OptimizerOptions,
        precision: str,
        device: torch.device,
        weights: Weights | None = None,
    ) -> Engine: ...


def _deepspeed(stage: int) -> EngineMaker:
    def make(
        scorer: PackedModel,
        options: OptimizerOptions,
        precision: str,
        device: torch.device,
        weights: Weights | None = None,
    ) -> Engine:
        from alignment_trainer.engines.deepspeed import DeepSpeedEngine  # a laptop runs without it

        return DeepSpeedEngine(scorer, options, precision, device, stage, weights)

    return make


ENGINES: dict[str, EngineMaker] = {
    "none": PlainEngine,
    "fsdp2": Fsdp2Engine,
    "zero2": _deepspeed(2),
    "zero3": _deepspeed(3),
}

__all__ = ["ENGINES", "Engine", "OptimizerOptions", "PlainEngine"]
