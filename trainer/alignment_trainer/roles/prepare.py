"""The role `prepare`: pins and checks models, reads, checks and tokenizes data, then drives the reference of pairs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from alignment_api.contract.context import Outcome
from alignment_api.contract.inputs import Data, Model
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import MicroBatchReport, ModelReport, PrecisionReport
from alignment_api.derived.micro_batch import tokens_of
from alignment_api.derived.reward_stage import LEAST_HELD_OUT
from alignment_api.derived.stages import trains_reward
from alignment_trainer.algorithms import make_algorithm, make_online
from alignment_trainer.checkpoint.claims import check_room, needed_bytes, read_claims
from alignment_trainer.checkpoint.inheritance import FIELD, check_inheritance
from alignment_trainer.checkpoint.ownership import take_folders
from alignment_trainer.data.examples import EXAMPLE_PARTS
from alignment_trainer.data.finding import find_data
from alignment_trainer.data.layouts.fields import renamed
from alignment_trainer.data.pins import manifest_of
from alignment_trainer.data.preparation import FORMATS, Request, prepare_rows
from alignment_trainer.data.prepared import (
    Manifest,
    check_prepared,
    digest,
    keep_decisions,
    open_prepared,
    prepared_in,
    write_prepared,
)
from alignment_trainer.data.sources import resolve_model
from alignment_trainer.data.spool import spool_in
from alignment_trainer.data.storage import storage_at, storage_of
from alignment_trainer.experience.online_checks import check_online, check_rows
from alignment_trainer.experience.reference import fill_reference
from alignment_trainer.model import micro_batch, precision
from alignment_trainer.model.inspect import (
    Check,
    Named,
    Pinned,
    check_model,
    inspection_of,
    language_model,
    load_tokenizer,
    parameter_shapes,
    value_model,
)
from alignment_trainer.model.tasks import LANGUAGE, REWARD, ModelTask
from alignment_trainer.process.instance import Instance
from alignment_trainer.rewards.models import named_models

log = logging.getLogger(__name__)

_MADE_BY: dict[ModelTask, Check] = {LANGUAGE: language_model, REWARD: value_model}


def run(instance: Instance) -> Outcome:
    """Ready once data and models are good; ends once the reference's log-probs are complete, where any are needed."""
    board = instance.board
    board.update(state="checking storage")
    take_folders(instance.context)
    instance, computed = precision.decided(instance)
    spec = instance.spec
    board.update(precision=computed)
    stages = [instance, instance.at_stage("reward")] if trains_reward(spec) else [instance]
    pinned = [_pin_model(stage) for stage in stages]
    model = pinned[0].report
    _check_inheritance(instance, pinned[0])
    decisions = [micro_batch.decided(stage, of.report) for stage, of in zip(stages, pinned, strict=True)]
    (instance, at_once), *_ = decisions
    board.update(model=model, micro_batch=at_once, state="checking room")
    _check_room(instance, pinned)
    reward_models = check_online(instance, pinned[0].resolved.path, pinned[1:]) if spec.algorithm.online else {}
    for (stage, decided), of_stage in reversed(list(zip(decisions, pinned, strict=True))):
        _prepare_data(stage, of_stage, reward_models if stage is instance else {}, (computed, decided))
    network = check_rows(instance) if spec.algorithm.online else None
    manifest = manifest_of(instance)
    data = manifest.data if manifest else None
    board.update(data=data, ready=True, state="data ready")
    if _asks_reference(instance) and not fill_reference(instance, open_prepared(storage_of(instance))):
        return Outcome(result="interrupted", data=data, model=model, precision=computed, micro_batch=at_once)
    return Outcome(
        result="succeeded",
        data=data,
        model=model,
        precision=computed,
        micro_batch=at_once,
        reward_models=reward_models or None,
        functions_network=network,
    )


def _asks_reference(instance: Instance) -> bool:
    """Online algorithms ask the reference while they train."""
    spec = instance.spec
    if spec.algorithm.online or spec.roles.reference.placement == "withPolicy":
        return False
    return make_algorithm(spec.algorithm).needs_reference


def _checks(spec: AlignmentJobSpec) -> tuple[Check, ...]:
    """What is made of the job's model."""
    if spec.algorithm.online is None:
        return (_MADE_BY[make_algorithm(spec.algorithm).task],)
    return (language_model, value_model) if make_online(spec.algorithm).needs_critic else (language_model,)


def _pin_model(stage: Instance) -> Pinned:
    """The model of a stage at the commit that an earlier life pinned, if any."""
    stage.board.update(state="checking the model")
    former, named = _former(stage, "model"), Named(stage.spec.model, stage.model_field)
    with stage.metrics.phase("check_model"):
        revision = former.model.revision if former else None
        resolved = resolve_model(named.model, stage.context.sources, revision, named.field)
        inspection = inspection_of(stage.spec, former.model if former else None)
        report = check_model(named, resolved, _checks(stage.spec), inspection)
        return Pinned(named, resolved, report)


def _check_inheritance(instance: Instance, pinned: Pinned) -> None:
    """Whether the checkpoint that the job starts from is one of its model. Raises UserError."""
    source = instance.spec.checkpoint.resume_from
    if source is None or read_claims(storage_of(instance)):
        return  # a job with claims of its own goes on from what it saved itself
    wanted = parameter_shapes(pinned.resolved.path, _checks(instance.spec)[0])
    check_inheritance(storage_of(instance), storage_at(instance.context.sources[source], FIELD), source, wanted)


def _check_room(instance: Instance, pinned: Sequence[Pinned]) -> None:
    """For the job's own checkpoints and model, and for those that stage `reward` leaves in storage."""
    reward = sum(sum(needed_bytes(other.report, instance.at_stage("reward").spec)) for other in pinned[1:])
    output = storage_at(instance.output, "spec.output.destination")
    check_room(storage_of(instance), output, needed_bytes(pinned[0].report, instance.spec, reward))


def _prepare_data(
    stage: Instance,
    pinned: Pinned,
    reward_models: dict[str, ModelReport],
    decided: tuple[PrecisionReport, MicroBatchReport],
) -> None:
    """Leaves what stands in storage if it was made for this very request, else makes it anew."""
    spec, board, storage = stage.spec, stage.board, storage_of(stage)
    board.update(state="reading data")
    former = _former(stage, "data")
    pinned_revision = former.data.revision if former else None
    sources = find_data(spec.data, stage.data_field, stage.context.sources, pinned_revision)
    request = digest(
        {
            "data": sources.identity,
            "model": pinned.report.fingerprint,
            "rows": _row_options(stage),
            "rewards": {name: report.fingerprint for name, report in reward_models.items()},
        }
        | ({} if spec.algorithm.online else {"parts": EXAMPLE_PARTS})
    )
    if former is not None and former.request == request:
        log.info("the data is prepared already", extra={"fingerprint": former.data.fingerprint})
        check_prepared(storage)
        keep_decisions(storage, former, *decided)
        return
    board.update(state="tokenizing data")
    tokenizer = load_tokenizer(spec.model.source, pinned.resolved.path, stage.model_field)
    form = FORMATS[spec.algorithm.options.rows](spec, tokenizer)
    with spool_in(prepared_in(storage).workplace(), form.parts, spec.training.seed) as spool:
        with stage.metrics.phase("tokenize"):
            rows = prepare_rows(_rows_asked(stage), form, sources, spool, stage.metrics)
        manifest = Manifest(
            request=request,
            origins=_origins(spec),
            data=rows.report,
            model=pinned.report,
            precision=decided[0],
            micro_batch=decided[1],
            reward_models=reward_models,
            parts={},
        )
        write_prepared(storage, manifest, rows.splits, rows.dropped)


def _rows_asked(stage: Instance) -> Request:
    spec, online = stage.spec, stage.spec.algorithm.online
    return Request(
        data=spec.data,
        field=stage.data_field,
        per_step=online.prompts_per_rollout if online else spec.training.batch_size,
        least_held_out=LEAST_HELD_OUT if stage.makes_reward else 1,
    )


def _former(stage: Instance, origin: str) -> Manifest | None:
    """What an earlier life left, if it was of the same `model` or `data`."""
    manifest = manifest_of(stage)
    return manifest if manifest and manifest.origins.get(origin) == _origins(stage.spec)[origin] else None


def _origins(spec: AlignmentJobSpec) -> dict[str, str]:
    sources: dict[str, Model | Data] = {"model": spec.model, "data": spec.data}
    sources |= {f"rewards/{component}": named.model for component, named in named_models(spec)}
    return {name: f"{origin.source}@{origin.revision}" for name, origin in sources.items()}


def _row_options(stage: Instance) -> dict[str, object]:
    """What of the spec decides the rows, sources apart."""
    spec, online = stage.spec, stage.spec.algorithm.online
    data = spec.data.model_dump(mode="json", include={"format", "on_invalid", "on_too_long", "evaluation"})
    data["evaluation"].pop("every_steps", None)
    data |= {"columns": named} if (named := renamed(spec.data.columns)) else {}
    data |= {"margin_per_score": spec.data.margin_per_score} if spec.data.margin_per_score else {}
    return {
        "data": data,
        "max_length": spec.training.max_length,
        "micro_batch_tokens": tokens_of(spec.training),
        "max_new_tokens": online.max_new_tokens if online else None,
        "seed": spec.training.seed,
        "stage": stage.context.stage if stage.makes_reward else None,
    }
