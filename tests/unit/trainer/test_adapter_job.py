"""A job with adapters, its roles as a runtime starts them: killed, resumed, exported, evaluated."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from roles import TinyJob, wait_until
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignment_api.contract.status import EvaluationReport

pytestmark = pytest.mark.timeout(1200)
LORA = {"training": {"lora": {"rank": 8, "alpha": 16}, "learningRate": 2e-2}}
WITH_POLICY = LORA | {"roles": {"reference": {"placement": "withPolicy"}}}


def run_role(job: TinyJob, role: str, **of_context: Any) -> int:
    process = job.fork(role, **of_context)
    process.join(900)
    return int(process.exitcode)


def losses(job: TinyJob) -> dict[int, float]:
    """By step, as far as the log goes."""
    log = job.folder / "policy.log"
    whole = log.read_text().splitlines(keepends=True) if log.exists() else []
    parsed = (json.loads(line) for line in whole if line.startswith("{") and line.endswith("}\n"))
    return {line["step"]: line["loss"] for line in parsed if "loss" in line}


def copy_of(job: TinyJob, folder: Path) -> TinyJob:
    """A job of the same model and rows whose storage is a copy."""
    new = TinyJob(folder, spec=job.spec)
    shutil.copytree(job.folder / "run", folder / "run")
    return new


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    job = TinyJob(tmp_path_factory.mktemp("prepared"), spec=WITH_POLICY)
    assert run_role(job, "prepare") == 0
    return job


@pytest.fixture(scope="module")
def whole(prepared: TinyJob, tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """Trained in one go, and evaluated."""
    job = copy_of(prepared, tmp_path_factory.mktemp("whole"))
    assert [run_role(job, role) for role in ("policy", "evaluator")] == [0, 0]
    return job


def test_it_starts_at_its_base_and_learns(whole: TinyJob) -> None:
    assert losses(whole)[1] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(whole)[8] < 0.4
    report = EvaluationReport.model_validate_json((whole.folder / "run" / "evaluation.json").read_text())
    assert (report.before["accuracy"].value, report.before["margin"].value) == (0.5, 0.0)
    assert report.after["accuracy"].low > 0.5
    assert report.after["margin"].low > 0


def test_its_checkpoints_hold_adapters_alone(whole: TinyJob) -> None:
    newest = whole.folder / "run" / "checkpoints" / "0001" / "00000008"
    tensors = load_file(newest / "state-00000-of-00001.safetensors")
    assert len(tensors) == 3 * 2 * 7 * 2
    assert all(".lora_" in name for name in tensors)


def test_merged_model_and_adapter_say_the_same_and_not_what_the_base_says(whole: TinyJob) -> None:
    exported, ids = whole.folder / "run" / "model", torch.tensor([[4, 8, 15, 16, 23, 42]])
    merged = AutoModelForCausalLM.from_pretrained(exported)(ids).logits
    base = AutoModelForCausalLM.from_pretrained(whole.folder / "model")
    before = base(ids).logits
    beside = PeftModel.from_pretrained(base, exported / "adapter")(ids).logits
    torch.testing.assert_close(merged, beside, atol=2e-5, rtol=0)
    assert (merged - before).abs().max() > 0.1
    said = json.loads((exported / "adapter" / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], said["task_type"]) == (8, 16, "CAUSAL_LM")
    assert said["base_model_name_or_path"] == f"{whole.folder}/model"


def test_killed_and_with_a_damaged_checkpoint_it_repeats_the_same_losses(
    whole: TinyJob, prepared: TinyJob, tmp_path: Path
) -> None:
    """The newest checkpoint is cut off: the one before is used, and what it holds is all that it takes."""
    cut = copy_of(prepared, tmp_path)
    attempt = cut.fork("policy")
    wait_until(lambda: len(losses(cut)) >= 5)
    attempt.terminate()
    attempt.join(900)
    assert attempt.exitcode == 143
    newest = max((cut.folder / "run" / "checkpoints" / "0001").iterdir())
    state = newest / "state-00000-of-00001.safetensors"
    state.write_bytes(state.read_bytes()[:-64])
    assert run_role(cut, "policy", life=2) == 0
    claim = json.loads((cut.folder / "run" / "claims" / "0002.json").read_text())
    assert claim["start"]["step"] < int(newest.name)
    assert losses(cut) == losses(whole)
    ours, theirs = (load_file(job.folder / "run" / "model" / "model.safetensors") for job in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_another_base_in_its_folder_ends_the_attempt(prepared: TinyJob, tmp_path: Path) -> None:
    job = copy_of(prepared, tmp_path)
    weights = job.folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert run_role(job, "policy") == 1
    failure = job.outcome("policy").failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("OtherBase", False)
    assert "its files are not those that `prepare` found" in failure.message


def test_a_wrong_target_ends_prepare_with_the_nearest(tmp_path: Path) -> None:
    job = TinyJob(tmp_path, spec={"training": {"lora": {"targets": ["q_prj"]}}})
    assert run_role(job, "prepare") == 1
    failure = job.outcome("prepare").failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("UnknownTarget", False)
    assert "spec.training.lora.targets: found `q_prj`" in failure.message
    assert "`q_proj`" in failure.message


def test_two_ranks_train_adapters_of_a_reward_model(tmp_path: Path) -> None:
    spec = LORA | {"algorithm": {"reward": {}}, "data": {"evaluation": {"fraction": 0.2}}}
    job = TinyJob(tmp_path, spec=spec, processes=2)
    assert run_role(job, "prepare") == 0
    for rank in job.fork_ranks("policy"):
        rank.join(900)
        assert rank.exitcode == 0
    assert losses(job)[8] < losses(job)[1] * 0.7
    adapter = load_file(job.folder / "run" / "model" / "adapter" / "adapter_model.safetensors")
    assert "base_model.model.score.weight" in adapter
