"""Tiny models with adapters, from folders as a job has them, and what several ranks do with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tests.tiny import tiny_tokenizer
from tiny_runs import Recorder, Setting, tiny_classifier, tiny_llama, tiny_run

from alignment_api.contract.spec import Lora
from alignment_trainer.checkpoint.run_state import restore
from alignment_trainer.engines import ENGINES, Engine, OptimizerOptions
from alignment_trainer.engines.merging import whole_weights
from alignment_trainer.engines.state import SavedState
from alignment_trainer.loop.offline import Run
from alignment_trainer.loop.train import train
from alignment_trainer.model.load import LoadedModel, adapted, outline_model, outline_value_model

CPU = torch.device("cpu")
LORA = Lora(rank=4, alpha=8)


def write_folder(folder: Path, network: Any) -> Path:
    network.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def write_tiny(folder: Path, algorithm: str = "dpo", **shape: Any) -> Path:
    """The model of `tiny_engine`, as a folder."""
    return write_folder(folder, tiny_classifier(**shape) if algorithm == "reward" else tiny_llama(**shape))


def outline(folder: Path, setting: Setting, lora: Lora = LORA) -> LoadedModel:
    """With adapters by seed 0."""
    make = outline_value_model if setting.algorithm == "reward" else outline_model
    return adapted(make(folder, setting.recompute), lora, "hf://org/base", 0)


def engine_of(model: LoadedModel, setting: Setting, start: Path | None = None) -> Engine:
    """start: a checkpoint of this job."""
    options = OptimizerOptions(setting.weight_decay, setting.max_grad_norm)
    weights = model.weights if start is None else model.restored(SavedState(start).weights)
    return ENGINES[setting.sharding](model.scorer, options, setting.precision, CPU, weights)


def begun(
    folder: Path, base: Path, setting: Setting, lora: Lora = LORA, **of_run: Any
) -> tuple[LoadedModel, Run, Recorder]:
    """A run from the model as it came, whose reference is that model."""
    model = outline(base, setting, lora)
    run, recorder = tiny_run(folder, setting, engine_of(model, setting), **of_run)
    return model, run, recorder


def gone_on(
    folder: Path, base: Path, setting: Setting, start: Path, **of_run: Any
) -> tuple[LoadedModel, Run, Recorder]:
    """The same from a checkpoint, in a new process in all but name."""
    model = outline(base, setting)
    engine = engine_of(model, setting, start)
    torch.manual_seed(1234)
    run, recorder = tiny_run(folder, setting, engine, **of_run)
    run.position = restore(start, engine)
    return model, run, recorder


def in_turn(folder: str, base: str, settings: list[Setting], start: str | None = None) -> list[dict[str, Any]]:
    """Figures of each run on this rank; from a checkpoint where one is given."""
    return [_figures(Path(folder) / str(number), Path(base), setting, start) for number, setting in enumerate(settings)]


def _figures(folder: Path, base: Path, setting: Setting, start: str | None) -> dict[str, Any]:
    reference = torch.zeros(setting.rows, 2)
    if start is None:
        model, run, recorder = begun(folder, base, setting, reference=reference)
    else:
        model, run, recorder = gone_on(folder, base, setting, Path(start), reference=reference)
    train(run)
    whole = {name: weight for name, weight in whole_weights(model, run.engine) if weight is not None}
    return {
        "losses": recorder.losses,
        "norms": [report.grad_norm for report in recorder.reports],
        "whole": {name: weight.double().sum().item() for name, weight in whole.items()},
        "held": sum(parameter.to_local().numel() for parameter in _shards(run.engine)),
    }


def _shards(engine: Engine) -> list[Any]:
    return [p for p in engine._scorer.parameters() if hasattr(p, "to_local")]


def of_ranks(setting: Setting, *shardings: str) -> list[Setting]:
    """The setting by each engine."""
    return [replace(setting, sharding=sharding) for sharding in shardings]
