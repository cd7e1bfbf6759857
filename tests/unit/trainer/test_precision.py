"""What `training.precision: auto` comes to: decided once, by the devices that train, and kept to the job's end."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from roles import TinyJob

from alignment_api.contract.platform import Gpu
from alignment_api.contract.status import PrecisionReport
from alignment_api.yaml.manifest import read_manifest as read_job
from alignment_trainer.data.prepared import keep_decisions, read_manifest
from alignment_trainer.data.storage import storage_of
from alignment_trainer.model.precision import PrecisionUndecided, autocast, cpu_has_bf16, decide, settled
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard
from alignment_trainer.roles.prepare import run

H100 = Gpu(product="H100-SXM5", memory_gib=80)
T4 = Gpu(product="Tesla T4", memory_gib=15, bf16=False)
OTHER = {"bf16": "fp32", "fp32": "bf16"}


def instance_of(job: TinyJob, role: str) -> Instance:
    """The role in this process."""
    context = job.context(role)
    manifest = read_job(Path(context.job_file).read_text(), "job.yaml")
    return Instance(context, manifest, StatusBoard(), Metrics("tiny", role), Interruption())


def auto_job(folder: Path, precision: str = "auto") -> TinyJob:
    """Its reference is computed by the policy, so that `prepare` ends without servers."""
    roles = {"reference": {"placement": "withPolicy"}}
    return TinyJob(folder, spec={"training": {"precision": precision}, "roles": roles})


@pytest.mark.parametrize("cpu", [True, False])
@pytest.mark.parametrize(("gpu", "value"), [(H100, "bf16"), (T4, "fp32")])
def test_the_gpus_that_train_decide_whatever_cpu_prepare_runs_on(gpu: Gpu, value: str, cpu: bool) -> None:
    report = decide("auto", gpu, cpu)
    assert report.value == value
    assert gpu.product in report.why


@pytest.mark.parametrize(("cpu", "value", "why"), [(True, "bf16", "has bf16"), (False, "fp32", "has no bf16")])
def test_without_gpus_the_cpu_of_prepare_decides(cpu: bool, value: str, why: str) -> None:
    assert decide("auto", None, cpu) == PrecisionReport(value=value, why=f"the CPU of `prepare` {why} in hardware")


@pytest.mark.parametrize("written", ["bf16", "fp32"])
@pytest.mark.parametrize("gpu", [H100, T4, None])
@pytest.mark.parametrize("cpu", [True, False])
def test_what_the_spec_says_is_taken_and_what_it_costs_is_said(written: str, gpu: Gpu | None, cpu: bool) -> None:
    report = decide(written, gpu, cpu)
    assert report.value == written
    emulates = written == "bf16" and not (gpu.bf16 if gpu else cpu)
    assert ("slower than fp32" in report.why) == (emulates and gpu is None)
    assert ("emulates" in report.why) == emulates


def test_a_cpu_has_bf16_where_the_kernel_lists_its_instructions() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    hidden = not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert cpu_has_bf16() == (bool(flags & {"avx512_bf16", "amx_bf16", "bf16"}) and not hidden)


def test_hardware_that_is_hidden_from_onednn_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    ask = "from alignment_trainer.model.precision import cpu_has_bf16; print(cpu_has_bf16())"
    assert subprocess.check_output([sys.executable, "-c", ask], text=True) == "False\n"


def test_prepare_decides_and_every_role_takes_its_answer(tmp_path: Path) -> None:
    job = auto_job(tmp_path)
    outcome = run(instance_of(job, "prepare"))
    assert outcome.precision is not None
    assert outcome.precision.value == ("bf16" if cpu_has_bf16() else "fp32")
    assert instance_of(job, "policy").spec.training.precision == "auto"
    for role in ("policy", "reference", "evaluator"):
        assert settled(instance_of(job, role)).spec.training.precision == outcome.precision.value


def test_a_later_life_on_another_machine_keeps_the_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = auto_job(tmp_path)
    first = run(instance_of(job, "prepare")).precision
    assert first is not None
    elsewhere = PrecisionReport(value=OTHER[first.value], why="decided on another machine")
    storage = storage_of(instance_of(job, "prepare"))
    manifest = read_manifest(storage)
    assert manifest is not None
    keep_decisions(storage, manifest, elsewhere, manifest.micro_batch)
    job.spec["data"] = {"source": f"file://{tmp_path}/pairs.jsonl", "evaluation": {"fraction": 0.3}}
    job.write_spec()  # the rows are tokenized anew
    assert run(instance_of(job, "prepare")).precision == elsewhere
    assert settled(instance_of(job, "policy")).spec.training.precision == elsewhere.value
    warned = any("this CPU has no bf16" in record.message for record in caplog.records)
    assert warned == (elsewhere.value == "bf16" and not cpu_has_bf16())


def test_the_answer_is_told_while_prepare_runs(tmp_path: Path) -> None:
    instance = instance_of(auto_job(tmp_path, "fp32"), "prepare")
    run(instance)
    told = instance.board.read().precision
    assert told == PrecisionReport(value="fp32", why="spec.training.precision is fp32")


def test_a_role_that_comes_before_the_answer_says_so(tmp_path: Path) -> None:
    with pytest.raises(PrecisionUndecided, match="`prepare` has not decided"):
        settled(instance_of(auto_job(tmp_path), "policy"))


def test_nothing_computes_in_a_precision_that_is_not_settled() -> None:
    with pytest.raises(KeyError, match="auto"):
        autocast(torch.device("cpu"), "auto")


def test_bf16_on_a_cpu_without_it_runs_after_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    job = auto_job(tmp_path, "bf16")
    assert job.start("prepare").wait() == 0
    precision = job.outcome("prepare").precision
    assert precision is not None
    assert precision.value == "bf16"
    lines = [json.loads(line) for line in (tmp_path / "prepare.log").read_text().splitlines()]
    warnings = [line["message"] for line in lines if line["level"].upper() == logging.getLevelName(logging.WARNING)]
    assert precision.why in warnings
    assert "5 to 10 times slower" in precision.why
