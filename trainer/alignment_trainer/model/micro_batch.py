"""How much is computed at once: `prepare` decides once for each model that a job trains, every other role follows."""

from __future__ import annotations

from dataclasses import replace

from alignment_api.contract.status import MicroBatchReport, ModelReport
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.micro_batch import ALL_LAYERS, TooLittleMemory, decide, with_micro_batch
from alignment_api.derived.room import limits_of
from alignment_trainer.data.pins import pins_of
from alignment_trainer.data.prepared import read_manifest
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.instance import Instance

BEFORE = MicroBatchReport(tokens=8192, recompute_layers=ALL_LAYERS, why="the default of the release that prepared it")
"""What held of a job whose manifest does not say."""


def decided(stage: Instance, model: ModelReport) -> tuple[Instance, MicroBatchReport]:
    """`prepare` at a stage as it goes on, with what it decided, or an earlier life of it did: the answer never changes.

    Raises UserError where nothing fits.
    """
    former = read_manifest(stage.storage)
    report = former.micro_batch if former is not None and former.micro_batch is not None else None
    decoder = Decoder.reported(model)
    if report is None or not _is_as_written(stage, report, decoder):
        report = _decide(stage, decoder)
    return _with(stage, report), report


def settled(instance: Instance) -> Instance:
    """Any other role as it goes on, with what `prepare` decided."""
    training = instance.spec.training
    if "auto" not in (training.micro_batch_tokens, training.recompute_layers):
        return instance
    pins = pins_of(instance)
    return _with(instance, (pins.micro_batch if pins is not None else None) or BEFORE)


def _decide(stage: Instance, model: Decoder) -> MicroBatchReport:
    limits = limits_of(stage.spec, model, stage.context.training_gpu, stage.context.free_memory)
    try:
        return decide(stage.spec, model.shape.layers, limits)
    except TooLittleMemory as error:
        raise UserError(
            "MemoryTooSmall",
            f"spec.training.microBatchTokens: `auto` finds no number that fits: the least {error}; give the role more "
            "memory, take a smaller model, or write a number to try it all the same",
        ) from error


def _is_as_written(stage: Instance, report: MicroBatchReport, model: Decoder) -> bool:
    tokens, again = stage.spec.training.micro_batch_tokens, stage.spec.training.recompute_layers
    again = again if again == "auto" else min(again, model.shape.layers)
    return tokens in ("auto", report.tokens) and again in ("auto", report.recompute_layers)


def _with(instance: Instance, report: MicroBatchReport) -> Instance:
    job = instance.job
    spec = with_micro_batch(job.spec, report.tokens, report.recompute_layers)
    return replace(instance, job=job.model_copy(update={"spec": spec}))
