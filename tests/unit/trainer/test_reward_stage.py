"""Reward models: as a job of their own, as stage `reward` of a PPO job, and behind HTTP; and what prepare refuses."""

import json
import math
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from roles import TinyJob, wait_until
from safetensors.numpy import load
from tests.tiny import SHAPE, pairs, tiny_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from alignment_api.contract.status import EvaluationReport
from alignment_api.derived.reward_stage import LEAST_HELD_OUT
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.prepared import open_prepared, open_prompts
from alignment_trainer.data.storage import Folder
from alignment_trainer.serving.wire import GroupsRequest, encode_request

GROUPS = (PromptGroup((5, 6), ((7, 8, 9), (10, 2))), PromptGroup((11,), ((12, 13, 2),)))


def run_role(job: TinyJob, role: str, **of_context: Any) -> int:
    process = job.fork(role, **of_context)
    process.join(900)
    return int(process.exitcode)


def losses(log: Path) -> dict[int, float]:
    whole = log.read_text().splitlines(keepends=True) if log.exists() else []
    parsed = (json.loads(line) for line in whole if line.startswith("{") and line.endswith("}\n"))
    return {line["step"]: line["loss"] for line in parsed if "loss" in line}


def ppo_job(folder: Path, rows: int = 600, **changes: Any) -> TinyJob:
    """Its prompts are those of its preferences. changes: of the PPO options."""
    trained = {"preferences": {"source": f"file://{folder}/pairs.jsonl"}, "learningRate": 3e-3, "batchSize": 40}
    rewards = [{"train": trained}, {"weight": 0.1, "function": {"length": {"maxTokens": 20}}}]
    return TinyJob(
        folder, rows, spec={"algorithm": {"ppo": {"maxNewTokens": 16, "rewards": rewards} | changes}, "training": {}}
    )


def copy_of(job: TinyJob, folder: Path) -> TinyJob:
    """The same job elsewhere, as far as it is; its data is found under the old name, too."""
    new = ppo_job(folder)
    shutil.copytree(job.folder / "run", folder / "run")
    return new


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    job = ppo_job(tmp_path_factory.mktemp("ppo"))
    assert run_role(job, "prepare") == 0, job.outcome("prepare").failure
    return job


@pytest.fixture(scope="module")
def trained(prepared: TinyJob, tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """After stage `reward`."""
    job = copy_of(prepared, tmp_path_factory.mktemp("trained"))
    assert run_role(job, "policy", stage="reward") == 0, job.outcome("policy").failure
    return job


def test_prepare_keeps_prompts_with_their_rows_and_the_pairs_of_stage_reward(prepared: TinyJob) -> None:
    report = prepared.outcome("prepare").data
    assert report is not None
    assert (report.format, report.rows, report.evaluation_rows) == ("prompts", 480, 120)
    prompts = open_prompts(Folder(prepared.folder / "run"))
    rows = pairs(600)
    example = prompts.train[3]
    assert example.fields == rows[example.row - 1]
    tokenizer = AutoTokenizer.from_pretrained(prepared.folder / "model")
    text = f"<|im_start|>user\n{example.fields['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(example.prompt) == text
    assert not {example.prompt for example in prompts.train} & {example.prompt for example in prompts.evaluation}
    preferences = open_prepared(Folder(prepared.folder / "run" / "reward"))
    assert len(preferences.evaluation) == LEAST_HELD_OUT
    assert len(preferences.train) == 400


def test_stage_reward_makes_a_model_above_chance_and_says_so(trained: TinyJob) -> None:
    outcome, folder = trained.outcome("policy"), trained.folder / "run" / "reward"
    report = outcome.evaluation
    assert report is not None
    assert report == EvaluationReport.model_validate_json((folder / "evaluation.json").read_text())
    assert report.after["accuracy"].count == LEAST_HELD_OUT
    assert report.after["accuracy"].low > 0.9
    assert report.after["margin"].low > 0
    assert report.before == {}  # its head was drawn at random
    assert losses(trained.folder / "policy.log")[1] == pytest.approx(math.log(2), abs=0.3)
    assert outcome.step == 10
    assert (folder / "claims" / "0001.json").exists()
    assert not (trained.folder / "run" / "claims").exists()


def test_the_reward_server_gives_the_scores_of_transformers(trained: TinyJob) -> None:
    server = trained.fork("reward")
    try:
        wait_until(lambda: _is_ready(trained.url("reward")))
        body = encode_request(GroupsRequest("", GROUPS))
        headers = {"Authorization": "Bearer secret"}
        answer = httpx.post(f"{trained.url('reward')}/v1/scores", content=body, headers=headers, timeout=300)
        wrong = encode_request(GroupsRequest("another", GROUPS))
        refused = httpx.post(f"{trained.url('reward')}/v1/scores", content=wrong, headers=headers, timeout=300)
    finally:
        server.terminate()
        server.join(900)
    assert server.exitcode == 143
    assert refused.status_code == 409
    length = int.from_bytes(answer.content[:8], "little")
    metadata = json.loads(answer.content[8 : 8 + length])["__metadata__"]
    assert json.loads(metadata["components"]) == ["trained"]
    assert len(metadata["model_fingerprint"]) == 64
    model = AutoModelForSequenceClassification.from_pretrained(
        trained.folder / "run" / "reward" / "model", dtype=torch.float32
    ).eval()
    texts = [group.prompt + completion for group in GROUPS for completion in group.completions]
    expected = [float(model(torch.tensor([text])).logits[0, 0].detach()) for text in texts]
    scores = load(answer.content)["scores"]
    assert scores.dtype == np.float32
    assert scores.tolist() == [pytest.approx(expected, abs=1e-4)]


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def test_a_stopped_stage_reward_goes_on_where_it_was(trained: TinyJob, prepared: TinyJob, tmp_path: Path) -> None:
    job = copy_of(prepared, tmp_path / "cut")
    attempt = job.fork("policy", stage="reward")
    wait_until(lambda: len(losses(job.folder / "policy.log")) >= 3)
    attempt.terminate()
    attempt.join(900)
    assert attempt.exitcode == 128 + signal.SIGTERM
    step = job.outcome("policy").step
    assert step is not None
    assert 3 <= step < 10
    assert run_role(job, "policy", life=2, stage="reward") == 0
    claim = json.loads((job.folder / "run" / "reward" / "claims" / "0002.json").read_text())
    assert claim["start"]["step"] == step
    assert losses(job.folder / "policy.log") == losses(trained.folder / "policy.log")
    assert job.outcome("policy").evaluation == trained.outcome("policy").evaluation


def test_a_reward_model_of_random_labels_stops_the_job(tmp_path: Path) -> None:
    job, draw = ppo_job(tmp_path), random.Random(0)
    with (job.folder / "pairs.jsonl").open("w") as file:
        for row in pairs(600):
            if draw.random() < 0.5:
                row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
            file.write(json.dumps(row) + "\n")
    assert run_role(job, "prepare") == 0, job.outcome("prepare").failure
    assert run_role(job, "policy", stage="reward") == 1
    outcome = job.outcome("policy")
    assert outcome.evaluation is not None
    assert outcome.failure is not None
    assert (outcome.failure.reason, outcome.failure.retryable) == ("RewardModelNotAboveChance", False)
    assert outcome.failure.message.startswith("spec.algorithm.ppo.rewards[0].train: the reward model prefers")
    assert "of 200 held-out pairs" in outcome.failure.message


def test_a_reward_model_is_a_job_of_its_own_too(tmp_path: Path) -> None:
    job = TinyJob(tmp_path, rows=200, spec={"algorithm": {"reward": {"centerCoef": 0.01}}})
    assert run_role(job, "prepare") == 0, job.outcome("prepare").failure
    assert run_role(job, "policy") == 0, job.outcome("policy").failure
    assert run_role(job, "evaluator") == 0, job.outcome("evaluator").failure
    report = job.outcome("evaluator").evaluation
    assert report is not None
    assert report.after["accuracy"].count == 40
    assert report.after["accuracy"].low > 0.5
    assert report.before == {}  # its head was drawn at random


def test_a_head_that_was_trained_before_is_judged_before_it_learns_more(tmp_path: Path) -> None:
    model = {"source": f"file://{tmp_path}/judge"}
    job = TinyJob(tmp_path, rows=60, spec={"algorithm": {"reward": {}}, "model": model})
    judge(job)
    assert run_role(job, "prepare") == 0, job.outcome("prepare").failure
    assert run_role(job, "policy") == 0, job.outcome("policy").failure
    assert run_role(job, "evaluator") == 0, job.outcome("evaluator").failure
    report = job.outcome("evaluator").evaluation
    assert report is not None
    assert report.before["accuracy"].count == report.after["accuracy"].count


def judge(job: TinyJob, labels: int = 1, tokenizer: Any = None) -> list[dict[str, Any]]:
    """A random sequence classifier in the job's folder, as its reward."""
    tokenizer = tokenizer or tiny_tokenizer()
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=labels, **SHAPE)
    LlamaForSequenceClassification(config).save_pretrained(job.folder / "judge")
    tokenizer.save_pretrained(job.folder / "judge")
    return [{"model": {"source": f"file://{job.folder}/judge"}}]


def other_tokenizer() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.eos_token = "<|pad|>"
    return tokenizer


def ppo(**options: Any) -> dict[str, Any]:
    return {"algorithm": {"ppo": {"maxNewTokens": 16} | options}}


LENGTH = [{"function": {"length": {"maxTokens": 20}}}]
Bad = Callable[[TinyJob], dict[str, Any]]
BAD: dict[str, tuple[Bad, str, str]] = {
    "two labels": (
        lambda job: ppo(rewards=judge(job, labels=2)),
        "UnsupportedModel",
        "it has 2 labels, a reward is one number; write a sequence classifier with one label (num_labels: 1)",
    ),
    "other tokenizer": (
        lambda job: ppo(rewards=judge(job, tokenizer=other_tokenizer())),
        "TokenizerMismatch",
        "1 tokens differ, for example `<|new|>`; its eos_token is `<|pad|>`, the policy's `<|im_end|>`",
    ),
    "no classifier": (
        lambda job: ppo(rewards=[{"model": {"source": f"file://{job.folder}/model"}}]),
        "UnsupportedModel",
        "it is a LlamaForCausalLM, which scores nothing",
    ),
    "prompt too long": (
        lambda job: ppo(rewards=LENGTH, maxNewTokens=120),
        "InvalidData",
        "with 120 of a completion (spec.algorithm.ppo.maxNewTokens) that is more than 128 (spec.training.maxLength)",
    ),
    # 2 x 2 layers x 1 head x 32 x 4 bytes = 512 bytes a token; 128 tokens take 64Ki, 32Ki hold 64
    "cache too small": (
        lambda job: ppo(rewards=LENGTH) | {"roles": {"rollout": {"kvCacheMemory": "32Ki"}}},
        "CacheTooSmall",
        "spec.roles.rollout.kvCacheMemory: 32Ki hold 64 tokens of 512 bytes, and a sequence has up to 128",
    ),
    "few pairs": (
        lambda job: ppo(rewards=[{"train": {"preferences": {"source": f"file://{job.folder}/pairs.jsonl"}}}]),
        "TooFewHeldOut",
        "spec.algorithm.ppo.rewards[0].train.preferences.evaluation: 80 pairs are held out of 80 valid rows",
    ),
    "no answers": (
        lambda job: ppo(rewards=[{"function": {"numericAnswer": {}}}]),
        "InvalidData",
        "it has no field `answer`, only chosen, prompt, rejected; add the answer to every row",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_prepare_refuses_with_the_field_and_the_cure(tmp_path: Path, kind: str) -> None:
    spoil, reason, message = BAD[kind]
    job = TinyJob(tmp_path)
    job.spec = spoil(job)
    job.write_spec()
    assert run_role(job, "prepare") == 1
    failure = job.outcome("prepare").failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == (reason, False), failure.message
    assert message in failure.message


def test_a_reward_model_that_exists_is_pinned_and_served(tmp_path: Path) -> None:
    job = TinyJob(tmp_path)
    job.spec = ppo(rewards=judge(job))
    job.write_spec()
    assert run_role(job, "prepare") == 0, job.outcome("prepare").failure
    assert list(open_prompts(Folder(job.folder / "run")).manifest.reward_models) == ["model"]
    weights = job.folder / "judge" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert run_role(job, "reward") == 1
    failure = job.outcome("reward").failure
    assert failure is not None
    assert failure.reason == "ModelChanged"
    assert failure.message.startswith("spec.algorithm.ppo.rewards[0].model.source: ")


def test_two_ranks_in_bf16_judge_together(prepared: TinyJob, tmp_path: Path) -> None:
    job = copy_of(prepared, tmp_path / "gang")
    job.processes = 2
    manifest = job.folder / "job.yaml"
    manifest.write_text(manifest.read_text().replace('"fp32"', '"bf16"'))
    assert run_role(job, "policy", stage="reward") == 0, job.outcome("policy").failure
    report = job.outcome("policy").evaluation
    assert report is not None
    assert report.after["accuracy"].low > 0.9
    assert report.after["accuracy"].count == LEAST_HELD_OUT
    assert losses(job.folder / "policy.log")[1] == pytest.approx(math.log(2), abs=0.3)
