"""How much is computed at once: `prepare` decides once for each model that a job trains, every other role follows."""

from __future__ import annotations

from dataclasses import replace

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import MicroBatchReport, ModelReport
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.micro_batch import TooLittleMemory, assumed, decide, with_micro_batch
from alignment_api.derived.room import limits_of
from alignment_trainer.data.pins import manifest_of, pins_of
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.instance import Instance

BEFORE_TOKENS = 8192
"""The default, with all layers recomputed, of releases that recorded no decision."""


def decided(stage: Instance, model: ModelReport) -> tuple[Instance, MicroBatchReport]:
    """`prepare` at a stage as it goes on, with what it decided, or an earlier life of it did: the answer never changes.

    Raises UserError where nothing fits.
    """
    former = manifest_of(stage)
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
    if pins is None or pins.micro_batch is None:
        return _computing(instance, assumed(instance.job.spec, BEFORE_TOKENS))
    return _with(instance, pins.micro_batch)


def _decide(stage: Instance, model: Decoder) -> MicroBatchReport:
    limits = limits_of(stage.spec, model, stage.context.training_gpu, stage.context.free_memory)
    try:
        return decide(stage.spec, model.shape.layers, limits)
    except TooLittleMemory as error:
        raise UserError(
            "MemoryTooSmall",
            "spec.training.microBatchTokens: `auto` finds no number that fits: the least, of the longest row that "
            f"spec.training.maxLength allows, {error}; give the role more memory, lower maxLength, leave "
            "recomputeLayers to `auto`, take a smaller model, or write a number to try it all the same",
        ) from error


def _is_as_written(stage: Instance, report: MicroBatchReport, model: Decoder) -> bool:
    tokens, again = stage.spec.training.micro_batch_tokens, stage.spec.training.recompute_layers
    again = again if again == "auto" else min(again, model.shape.layers)
    return tokens in ("auto", report.tokens) and again in ("auto", report.recompute_layers)


def _with(instance: Instance, report: MicroBatchReport) -> Instance:
    return _computing(instance, with_micro_batch(instance.job.spec, report.tokens, report.recompute_layers))


def _computing(instance: Instance, spec: AlignmentJobSpec) -> Instance:
    """spec: the whole job's, from which its stage's follows."""
    return replace(instance, job=instance.job.model_copy(update={"spec": spec}))
