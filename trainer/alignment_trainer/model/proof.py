"""The probe of a model before it trains: on its own weights where they fit in memory, else on a cut of it."""

from __future__ import annotations

import copy
import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignment_api.contract.status import ProbeReport
from alignment_api.derived.role_memory import GIB
from alignment_api.derived.sizing import PREPARE_PROCESS_GIB
from alignment_trainer.model.cut import FP32_BYTES, draw, plan_cut
from alignment_trainer.model.heads import LogprobHead, PackedModel
from alignment_trainer.model.load import load_model, load_value_model
from alignment_trainer.model.mistakes import InvalidModelError
from alignment_trainer.model.probe import LEAST_REACH, TEMPERATURE, Figures, check_figures, probe
from alignment_trainer.model.tensors import Apart
from alignment_trainer.process.errors import UserError, describe, is_out_of_memory

_HEADROOM = 1.2
"""Over the weights: one tensor twice while it is converted, and the logits of a row."""


@dataclass(frozen=True)
class Built:
    """A model made of a config. apart: what it need not find in its files."""

    network: Any
    scorer: PackedModel
    apart: Apart


Make = Callable[[Any], Built]


def prove(folder: Path, config: Any, make: Make, parameters: int, memory: int) -> ProbeReport:
    """Raises UnsupportedModelError with the figures where packed rows are not what transformers computes.

    config: of the folder, without noise. parameters: that the model has. memory: bytes that its weights may take here.
    Random weights hardly listen to a prompt, so they hide a wrong mask; then the cut, whose weights do, is probed too.
    """
    if FP32_BYTES * parameters * _HEADROOM <= memory:
        figures = _probe_whole(folder, config, make)
        if figures.reach >= LEAST_REACH:
            return _report("whole", figures)
    return _report("cut", _probe_cut(config, make, memory))


def _probe_whole(folder: Path, config: Any, make: Make) -> Figures:
    is_language = isinstance(_on_meta(make, config).scorer.head, LogprobHead)
    try:
        loaded = load_model(folder, temperature=TEMPERATURE) if is_language else load_value_model(folder)
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise (
            error if is_out_of_memory(error) else InvalidModelError(f"it cannot be loaded: {describe(error)}")
        ) from error
    figures = probe(loaded.network, loaded.scorer)
    check_figures(figures, config.model_type, "its own weights")
    return figures


def _probe_cut(config: Any, make: Make, memory: int) -> Figures:
    cut = plan_cut(config, lambda config: make(config).network)
    if cut.bytes * _HEADROOM > memory:
        least = math.ceil(cut.bytes * _HEADROOM / GIB + PREPARE_PROCESS_GIB)
        raise UserError(
            "MemoryTooSmall",
            f"spec.roles.prepare.memory: {cut.layers} layers of {config.model_type} ({cut.bytes / GIB:.1f} GiB in fp32)"
            f" are the least that shows whether it can be trained here; write {least}Gi or more",
        )
    gc.collect()
    built = make(cut.config)
    draw(built.network.float())  # a config of bf16 makes such weights, whose rounding would pass for a wrong mask
    what = f"{cut.layers} of its {cut.of_layers} layers with random weights"
    figures = probe(built.network, built.scorer)
    check_figures(figures, config.model_type, what)
    return figures


def _on_meta(make: Make, config: Any) -> Built:
    with torch.device("meta"):
        return make(copy.deepcopy(config))


def _report(model: Any, figures: Figures) -> ProbeReport:
    return ProbeReport(model=model, alone=figures.alone, neighbour=figures.neighbour)
