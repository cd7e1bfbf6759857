"""How much is computed at once, where the spec leaves it to `prepare`: decided once, recorded, followed by all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from roles import TinyJob

from alignment_api.contract.context import Pins
from alignment_api.contract.numbers import ALL_LAYERS
from alignment_api.contract.status import MicroBatchReport
from alignment_api.derived.role_memory import GIB
from alignment_api.yaml.manifest import read_manifest as read_job
from alignment_trainer.data.prepared import read_manifest
from alignment_trainer.data.storage import Folder
from alignment_trainer.model.micro_batch import BEFORE_TOKENS, settled
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard
from alignment_trainer.roles.prepare import run

TRAINING = {"microBatchTokens": "auto", "recomputeLayers": "auto"}


def instance_of(job: TinyJob, role: str, **fields: Any) -> Instance:
    """The role in this process. fields: of its context."""
    context = job.context(role, **fields)
    manifest = read_job(Path(context.job_file).read_text(), "job.yaml")
    return Instance(context, manifest, StatusBoard(), Metrics("tiny", role), Interruption())


def job_in(folder: Path, training: dict[str, Any]) -> TinyJob:
    """Its reference is computed by the policy, so that `prepare` ends without servers."""
    return TinyJob(folder, spec={"training": training, "roles": {"reference": {"placement": "withPolicy"}}})


def test_prepare_decides_by_what_is_free_and_another_machine_changes_nothing(tmp_path: Path) -> None:
    job = job_in(tmp_path, TRAINING)
    outcome = run(instance_of(job, "prepare", free_memory=100 * GIB))
    report = outcome.micro_batch
    assert report is not None
    assert (report.tokens, report.recompute_layers) == (8192, 0)
    assert "free on this machine" in report.why
    again = run(instance_of(job, "prepare", free_memory=GIB))
    assert again.micro_batch == report
    training = settled(instance_of(job, "policy")).spec.training
    assert (training.micro_batch_tokens, training.recompute_layers) == (8192, 0)


def test_a_number_that_is_written_later_holds_over_what_was_decided(tmp_path: Path) -> None:
    job = job_in(tmp_path, TRAINING)
    run(instance_of(job, "prepare", free_memory=100 * GIB))
    job = job_in(tmp_path, {"microBatchTokens": 700, "recomputeLayers": 1})
    report = run(instance_of(job, "prepare", free_memory=100 * GIB)).micro_batch
    assert report == MicroBatchReport(tokens=700, recompute_layers=1, why="the spec says so")
    manifest = read_manifest(Folder(tmp_path / "run"))
    assert manifest is not None
    assert manifest.micro_batch == report


def test_a_row_that_does_not_fit_alone_is_refused_by_row(tmp_path: Path) -> None:
    job = job_in(tmp_path, TRAINING | {"microBatchTokens": 64})
    with pytest.raises(UserError, match=r"pairs\.jsonl:\d+.* tokens, and a pair is computed at once: more than 64 "):
        run(instance_of(job, "prepare", free_memory=100 * GIB))


def test_too_little_memory_for_any_row_is_refused_with_what_it_takes(tmp_path: Path) -> None:
    job = job_in(tmp_path, TRAINING)
    with pytest.raises(UserError, match=r"1\.0 of 0\.\d GiB free on this machine.*or write a number") as refused:
        run(instance_of(job, "prepare", free_memory=GIB // 4))
    assert refused.value.reason == "MemoryTooSmall"


def test_a_server_is_told_and_what_an_earlier_release_prepared_has_its_default(tmp_path: Path) -> None:
    job = job_in(tmp_path, TRAINING)
    outcome = run(instance_of(job, "prepare", free_memory=100 * GIB))
    told = Pins(model=outcome.model, precision=outcome.precision, micro_batch=outcome.micro_batch)
    here = instance_of(job, "reference", pins=told, storage=str(tmp_path / "elsewhere"))
    assert settled(here).spec.training.recompute_layers == 0
    before = told.model_copy(update={"micro_batch": None})
    here = replace(here, context=here.context.model_copy(update={"pins": before}))
    assert settled(here).spec.training.micro_batch_tokens == BEFORE_TOKENS == 8192


def test_what_an_earlier_release_prepared_keeps_what_its_job_wrote(tmp_path: Path) -> None:
    job = job_in(tmp_path, TRAINING | {"microBatchTokens": 700})
    outcome = run(instance_of(job, "prepare", free_memory=100 * GIB))
    before = Pins(model=outcome.model, precision=outcome.precision)
    training = settled(instance_of(job, "reference", pins=before, storage=str(tmp_path / "elsewhere"))).spec.training
    assert (training.micro_batch_tokens, training.recompute_layers) == (700, ALL_LAYERS)
