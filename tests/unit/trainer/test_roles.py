"""The roles of a job as a runtime starts them, from data to an evaluated model."""

import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from roles import TinyJob, wait_until
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment_api.contract.status import EvaluationReport

BF16_FIRST_LOSS = 2e-3
"""How far the first loss may be from ln 2: the reference is computed in other micro-batches than the step, and bf16
rounds by them."""
WITH_POLICY = {"roles": {"reference": {"placement": "withPolicy"}}}


def lines(log: Path) -> list[dict[str, Any]]:
    """The log's JSON lines; every line must be one."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def losses(log: Path) -> dict[int, float]:
    """By step, as far as the log goes; torchrun, too, has its say in some."""
    whole = log.read_text().splitlines(keepends=True) if log.exists() else []
    parsed = (json.loads(line) for line in whole if line.startswith("{") and line.endswith("}\n"))
    return {line["step"]: line["loss"] for line in parsed if "loss" in line}


def run_role(job: TinyJob, role: str, **of_context: Any) -> int:
    process = job.fork(role, **of_context)
    process.join(900)
    return int(process.exitcode)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """One epoch of 8 steps in bf16, by processes started as a runtime starts them."""
    job = TinyJob(
        tmp_path_factory.mktemp("job"), spec={"training": {"precision": "bf16"}, "tracking": {"tensorboard": True}}
    )
    server = job.start("reference")
    prepare = job.start("prepare", peers=(job.url("reference"),))
    assert prepare.wait(900) == 0
    server.send_signal(signal.SIGTERM)
    assert server.wait(900) == 143
    policy = job.start("policy")
    wait_until(lambda: policy.poll() is not None or _kept_metrics(job))
    assert policy.wait(900) == 0
    assert job.start("evaluator").wait(900) == 0
    return job


def _kept_metrics(job: TinyJob) -> bool:
    """Whether the second step is done, after which the pace is known, too; what the policy says goes to metrics.txt."""
    text = _metrics(job)
    (job.folder / "metrics.txt").write_text(text)
    return "alignment_tokens_per_second{" in text


def _metrics(job: TinyJob) -> str:
    try:
        return httpx.get(f"{job.url('policy')}/metrics", timeout=5).text
    except httpx.TransportError:
        return ""


def test_the_first_loss_is_ln_2_and_the_model_learns(finished: TinyJob) -> None:
    by_step = losses(finished.folder / "policy.log")
    assert by_step[1] == pytest.approx(math.log(2), abs=BF16_FIRST_LOSS)
    assert by_step[8] < 0.2


def test_evaluation_starts_at_a_half_and_ends_above_chance(finished: TinyJob) -> None:
    report = EvaluationReport.model_validate_json((finished.folder / "run" / "evaluation.json").read_text())
    assert (report.before["accuracy"].value, report.before["margin"].value) == (0.5, 0.0)
    assert report.before["accuracy"].count == report.after["accuracy"].count == 16
    assert report.after["accuracy"].low > 0.5
    assert report.after["margin"].low > 0
    assert finished.outcome("evaluator").evaluation == report


def test_metrics_are_there_while_it_trains(finished: TinyJob) -> None:
    names = {f.name for f in text_string_to_metric_families((finished.folder / "metrics.txt").read_text()) if f.samples}
    assert {
        "alignment_step",
        "alignment_loss",
        "alignment_reward_margin",
        "alignment_preference_accuracy_ratio",
        "alignment_tokens",
        "alignment_tokens_per_second",
        "alignment_learning_rate",
        "alignment_gradient_norm",
        "alignment_resident_memory_bytes",
    } <= names


def test_tensorboard_has_the_curves(finished: TinyJob) -> None:
    curves = EventAccumulator(str(finished.folder / "run" / "tensorboard")).Reload()
    by_step = losses(finished.folder / "policy.log")
    assert {event.step: pytest.approx(event.value, rel=1e-4) for event in curves.Scalars("loss")} == by_step
    assert [event.step for event in curves.Scalars("heldout_accuracy")] == [2, 4, 6]


def test_outcomes_tell_data_model_step_and_checkpoint(finished: TinyJob) -> None:
    prepare, policy = finished.outcome("prepare"), finished.outcome("policy")
    assert prepare.data is not None
    assert prepare.model is not None
    assert (prepare.data.rows, prepare.data.evaluation_rows, prepare.model.parameters) == (64, 16, 99648)
    assert policy.step == 8
    assert policy.checkpoint is not None
    assert policy.checkpoint.step == 8


def test_every_line_of_every_log_is_json_with_job_and_role(finished: TinyJob) -> None:
    for role in ("prepare", "reference", "policy", "evaluator"):
        for line in lines(finished.folder / f"{role}.log"):
            assert (line["job"], line["role"]) == ("tiny", role)
            assert {"time", "level", "message"} <= set(line)


def test_the_exported_model_loads_and_is_not_its_base(finished: TinyJob) -> None:
    folder = finished.folder / "run" / "model"
    assert AutoTokenizer.from_pretrained(folder).chat_template
    trained = AutoModelForCausalLM.from_pretrained(folder).get_input_embeddings().weight
    base = load_file(finished.folder / "model" / "model.safetensors")["model.embed_tokens.weight"]
    assert trained.dtype == torch.bfloat16
    assert not torch.equal(trained, base.bfloat16())


def test_another_jobs_process_does_not_touch_the_storage(finished: TinyJob) -> None:
    claims = finished.folder / "run" / "claims" / "0001.json"
    text = claims.read_text()
    claims.write_text(text.replace("uid-1", "uid-2"))
    assert run_role(finished, "policy", life=2) == 1
    claims.write_text(text)
    failure = finished.outcome("policy").failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("ForeignStorage", False)


@pytest.fixture(scope="module")
def with_policy(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """Prepared; the reference is the policy's to compute, in bf16."""
    job = TinyJob(tmp_path_factory.mktemp("with"), spec=WITH_POLICY | {"training": {"precision": "bf16"}})
    assert run_role(job, "prepare") == 0
    return job


def copy_of(job: TinyJob, folder: Path, **changes: Any) -> TinyJob:
    """A job of the same model and rows whose storage is a copy."""
    new = TinyJob(folder, spec=job.spec, **changes)
    shutil.copytree(job.folder / "run", folder / "run")
    return new


def test_sigterm_saves_and_the_next_attempt_repeats_the_same_losses(with_policy: TinyJob, tmp_path: Path) -> None:
    whole, cut = copy_of(with_policy, tmp_path / "a"), copy_of(with_policy, tmp_path / "b")
    assert run_role(whole, "policy") == 0
    expected = losses(whole.folder / "policy.log")
    assert expected[1] == pytest.approx(math.log(2), abs=BF16_FIRST_LOSS)

    attempt = cut.fork("policy")
    wait_until(lambda: len(losses(cut.folder / "policy.log")) >= 3)
    attempt.terminate()
    attempt.join(900)
    assert attempt.exitcode == 143
    outcome = cut.outcome("policy")
    assert outcome.result == "interrupted"
    assert outcome.step is not None
    assert outcome.checkpoint is not None
    assert 3 <= outcome.checkpoint.step == outcome.step < 8
    assert run_role(cut, "policy", life=2) == 0
    claim = json.loads((cut.folder / "run" / "claims" / "0002.json").read_text())
    assert claim["start"] == {"term": 1, "step": outcome.step, "updates": 0}
    assert losses(cut.folder / "policy.log") == expected


@pytest.mark.parametrize("algorithm", [{"orpo": {"oddsWeight": 1.0}}, {"simpo": {}}], ids=["orpo", "simpo"])
def test_pairs_are_learnt_without_a_reference_and_the_next_attempt_repeats_the_losses(
    algorithm: dict[str, Any], tmp_path: Path
) -> None:
    whole = TinyJob(tmp_path / "a", spec={"algorithm": algorithm})
    assert run_role(whole, "prepare") == 0, "it asks nobody, and ends"
    assert not (whole.folder / "run" / "prepared" / "reference").exists()
    cut = copy_of(whole, tmp_path / "b")
    assert run_role(whole, "policy") == 0
    expected = losses(whole.folder / "policy.log")
    assert expected[8] < expected[1] * 0.9

    attempt = cut.fork("policy")
    wait_until(lambda: len(losses(cut.folder / "policy.log")) >= 3)
    attempt.terminate()
    attempt.join(900)
    assert attempt.exitcode == 143
    assert run_role(cut, "policy", life=2) == 0
    assert losses(cut.folder / "policy.log") == expected

    assert run_role(cut, "evaluator") == 0
    report = EvaluationReport.model_validate_json((cut.folder / "run" / "evaluation.json").read_text())
    assert list(report.after) == list(report.before) == ["accuracy", "margin", "likelierChosen"]
    assert report.before["accuracy"].high < 1.0
    assert report.after["accuracy"].low > report.before["accuracy"].value
    assert report.after["margin"].low > report.before["margin"].high


def test_two_ranks_are_one_instance_and_save_on_sigterm(with_policy: TinyJob, tmp_path: Path) -> None:
    job = copy_of(with_policy, tmp_path / "job", processes=2)
    attempt = job.start("policy")
    wait_until(lambda: len(losses(job.folder / "policy.log")) >= 3)
    attempt.send_signal(signal.SIGTERM)
    assert attempt.wait(900) == 143
    outcome = job.outcome("policy")
    assert outcome.result == "interrupted"
    assert outcome.checkpoint is not None
    assert outcome.checkpoint.step == outcome.step
    assert losses(job.folder / "policy.log")[1] == pytest.approx(math.log(2), abs=BF16_FIRST_LOSS)


def test_a_failing_rank_is_told_by_its_own_reason(with_policy: TinyJob, tmp_path: Path) -> None:
    job = copy_of(with_policy, tmp_path / "job", processes=2)
    (job.folder / "run" / "prepared" / "train.safetensors").write_bytes(b"damaged")
    assert run_role(job, "policy") == 1
    failure = job.outcome("policy").failure
    assert failure is not None
    assert failure.reason == "DamagedDataError"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")
def test_missing_gpus_fail_at_once(with_policy: TinyJob) -> None:
    assert run_role(with_policy, "evaluator", gpus=4) == 1
    failure = with_policy.outcome("evaluator").failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("TooFewGPUs", True)
    assert "planned with 4 GPUs, found 0" in failure.message


BAD_DATA = {
    "missing": (lambda job: (job.folder / "pairs.jsonl").unlink(), "DataNotFound", "does not exist"),
    "empty": (lambda job: (job.folder / "pairs.jsonl").write_text(""), "NoRows", "holds no rows"),
    "row": (
        lambda job: (job.folder / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "c"}\n' * 3),
        "InvalidData",
        "pairs.jsonl:3: `rejected` is missing",
    ),
    "prompts": (
        lambda job: (job.folder / "pairs.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n' * 3),
        "NoRows",
        "1 different prompts",
    ),
    "model": (lambda job: (job.folder / "model" / "config.json").unlink(), "InvalidModel", "no config.json"),
    "weights": (
        lambda job: (job.folder / "model" / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}"),
        "InvalidModel",
        "model.safetensors",
    ),
    "tokenizer": (
        lambda job: [path.unlink() for path in (job.folder / "model").glob("tokenizer*")],
        "InvalidModel",
        "its tokenizer cannot be loaded",
    ),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_input_ends_prepare_with_the_cure(with_policy: TinyJob, tmp_path: Path, kind: str) -> None:
    spoil, reason, message = BAD_DATA[kind]
    job = TinyJob(tmp_path, spec=WITH_POLICY)
    spoil(job)
    assert run_role(job, "prepare") == 1
    failure = job.outcome("prepare").failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == (reason, False)
    assert message in failure.message


def test_invalid_rows_are_dropped_where_the_job_says_so(tmp_path: Path) -> None:
    job = TinyJob(tmp_path, spec=WITH_POLICY | {"data": {"onInvalid": "drop"}})
    with (job.folder / "pairs.jsonl").open("a") as rows:
        rows.write('{"prompt": "p", "chosen": "c"}\n')
    assert run_role(job, "prepare") == 0
    data = job.outcome("prepare").data
    assert data is not None
    assert (data.rows + data.evaluation_rows, data.invalid_rows) == (80, 1)
    (dropped,) = lines(job.folder / "run" / "prepared" / "invalid.jsonl")
    assert dropped["row"] == 81
    assert "pairs.jsonl:81: `rejected` is missing" in dropped["problem"]


def test_other_data_in_the_same_storage_is_prepared_anew(tmp_path: Path) -> None:
    job = TinyJob(tmp_path, spec=WITH_POLICY)
    assert run_role(job, "prepare") == 0
    first = job.outcome("prepare").data
    text = (job.folder / "pairs.jsonl").read_text()
    (job.folder / "pairs.jsonl").write_text(text.replace("Gladly", "Kindly"))
    assert run_role(job, "prepare", life=2) == 0
    second = job.outcome("prepare").data
    assert first is not None
    assert second is not None
    assert first.fingerprint != second.fingerprint
