"""Engines, by the spec's `training.sharding`."""

from collections.abc import Callable

import torch

from alignment_trainer.engines.base import Engine, OptimizerOptions
from alignment_trainer.engines.plain import PlainEngine
from alignment_trainer.model.heads import PackedModel

EngineMaker = Callable[[PackedModel, OptimizerOptions, str, torch.device], Engine]


def _deepspeed(stage: int) -> EngineMaker:
    def make(scorer: PackedModel, options: OptimizerOptions, precision: str, device: torch.device) -> Engine:
        from alignment_trainer.engines.deepspeed import DeepSpeedEngine  # a laptop runs without it

        return DeepSpeedEngine(scorer, options, precision, device, stage)

    return make


ENGINES: dict[str, EngineMaker] = {"none": PlainEngine, "zero2": _deepspeed(2), "zero3": _deepspeed(3)}

__all__ = ["ENGINES", "Engine", "OptimizerOptions", "PlainEngine"]
