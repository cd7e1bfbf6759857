"""What alignctl prints without running anything."""

import json
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from ruamel.yaml import YAML
from safetensors.numpy import save_file
from typer.testing import CliRunner

from alignment_api.contract.context import InstanceStatus
from alignment_api.contract.status import (
    AlignmentJobStatus,
    EvaluationReport,
    Interval,
    LearningRateReport,
    MicroBatchReport,
    PrecisionReport,
    Progress,
    StageStatus,
)
from alignment_api.yaml.manifest import read_begun_manifest, read_manifest
from alignment_cli.display import Display, duration
from alignment_cli.main import app
from alignment_cli.summary import length_baseline, print_summary
from alignment_operator.local.folder import RunFolder
from alignment_operator.plan.types import PodView

JOB = """\
apiVersion: alignment.run/v1alpha1
kind: AlignmentJob
metadata: {name: helpful}
spec:
  model: {source: pvc://models/base}
  data: {source: pvc://data/pairs.jsonl}
  algorithm: {dpo: {}}
  roles: {reference: {replicas: 2}}
"""


def alignctl(*arguments: str) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    file = tmp_path / "job.yaml"
    file.write_text(JOB)
    return file


def test_render_shows_every_stages_pods_and_what_they_lean_on(manifest: Path) -> None:
    result = alignctl("render", str(manifest))
    assert result.exit_code == 0, result.stderr
    objects = list(YAML(typ="safe", pure=True).load_all(result.stdout))
    kinds = [found["kind"] for found in objects]
    assert kinds.count("Pod") == 5, "prepare, two references, policy, evaluator"
    assert {"Secret", "ConfigMap", "Service", "NetworkPolicy", "PersistentVolumeClaim"} <= set(kinds)
    roles = [o["metadata"]["labels"]["alignment.run/role"] for o in objects if o["kind"] == "Pod"]
    assert roles == ["prepare", "reference", "reference", "policy", "evaluator"]
    waiting = [o for o in objects if o["kind"] == "Pod" and o["spec"].get("schedulingGates")]
    assert {o["metadata"]["labels"]["alignment.run/role"] for o in waiting} == {"reference"}


@pytest.mark.parametrize(
    ("algorithm", "roles"),
    [
        ("sft", ["prepare", "policy", "evaluator"]),
        ("kto", ["prepare", "reference", "reference", "policy", "evaluator"]),
    ],
)
def test_render_shows_a_reference_only_where_the_algorithm_has_one(
    tmp_path: Path, algorithm: str, roles: list[str]
) -> None:
    text = JOB.replace("dpo", algorithm)
    if "reference" not in roles:
        text = text.replace("  roles: {reference: {replicas: 2}}\n", "")
    (tmp_path / "job.yaml").write_text(text)
    result = alignctl("render", str(tmp_path / "job.yaml"))
    assert result.exit_code == 0, result.stderr
    objects = list(YAML(typ="safe", pure=True).load_all(result.stdout))
    assert [o["metadata"]["labels"]["alignment.run/role"] for o in objects if o["kind"] == "Pod"] == roles


@pytest.mark.parametrize(
    ("algorithm", "row", "words"),
    [
        ("sft", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, ""),
        ("kto", {"prompt": "a", "completion": "b", "label": True}, ""),
        ("kto", {"prompt": "a", "completion": "b", "label": "yes"}, "rows.jsonl:1: `label` is a string"),
        ("sft", {"prompt": "a", "completion": "b", "label": True}, "these rows are binary feedback"),
        ("dpo", {"prompt": "a", "completion": "b", "label": True}, "take `kto`"),
    ],
)
def test_validate_reads_the_rows_that_the_algorithm_learns_from(
    tmp_path: Path, algorithm: str, row: dict[str, Any], words: str
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    text = JOB.replace("dpo", algorithm).replace("  roles: {reference: {replicas: 2}}\n", "")
    (tmp_path / "job.yaml").write_text(text.replace("pvc://data/pairs.jsonl", f"file://{tmp_path}/rows.jsonl"))
    result = alignctl("validate", str(tmp_path / "job.yaml"))
    assert (result.exit_code == 0) == (not words), result.stderr
    assert words in result.stderr


def test_render_shows_the_stages_of_ppo_with_a_reward_model_to_train(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    rewards = "[{train: {preferences: {source: pvc://data/judged.jsonl}}}]"
    file.write_text(JOB.replace("{dpo: {}}", f"{{ppo: {{rewards: {rewards}}}}}"))
    result = alignctl("render", str(file))
    assert result.exit_code == 0, result.stderr
    pods = [found for found in YAML(typ="safe", pure=True).load_all(result.stdout) if found["kind"] == "Pod"]
    labels = [pod["metadata"]["labels"] for pod in pods]
    stages: dict[str, list[str]] = {}
    for label in labels:
        stages.setdefault(label["alignment.run/stage"], []).append(label["alignment.run/role"])
    assert stages["prepare"] == ["prepare"]
    assert stages["reward"] == ["policy"]
    assert stages["train"] == ["actor", "critic", "reference", "reference", "reward", "rollout"]
    assert sorted(stages["evaluate"]) == ["evaluator", "reference", "reference", "reward", "rollout"]
    waiting = [pod["metadata"]["labels"]["alignment.run/role"] for pod in pods if pod["spec"].get("schedulingGates")]
    assert waiting == ["actor", "critic", "evaluator"]


POLICED = JOB.replace("replicas: 2}", "replicas: 2, podTemplate: {spec: {priorityClassName: high}}}")


def test_validate_asks_the_platforms_policy_where_it_is_given(manifest: Path, tmp_path: Path) -> None:
    manifest.write_text(POLICED + "  image: elsewhere/trainer:1\n")
    platform = tmp_path / "platform.yaml"
    platform.write_text("policy: {images: [ours/*]}\n")
    assert alignctl("validate", str(manifest)).exit_code == 0, "without a platform no policy is known"
    result = alignctl("validate", str(manifest), "--platform", str(platform))
    assert result.exit_code == 1
    assert (
        f"{manifest}:9: spec.image: the platform lets no job name image `elsewhere/trainer:1`; its policy.images "
        "allows `ours/*`" in result.stderr
    )
    assert "spec.roles.reference.podTemplate.spec.priorityClassName: the platform lets no job set this" in result.stderr
    platform.write_text("policy: {podTemplate: [spec.priorityClassName]}\n")
    allowed = alignctl("validate", str(manifest), "--platform", str(platform))
    assert (allowed.exit_code, allowed.stdout) == (0, f"{manifest}: valid\n")


def test_validate_says_what_is_wrong_with_the_platform_itself(manifest: Path, tmp_path: Path) -> None:
    platform = tmp_path / "platform.yaml"
    missing = alignctl("validate", str(manifest), "--platform", str(platform))
    assert missing.exit_code == 1
    assert f"--platform {platform}: cannot be read" in missing.stderr
    platform.write_text("policy: {image: [ours/*]}\n")
    odd = alignctl("validate", str(manifest), "--platform", str(platform))
    assert odd.exit_code == 1
    assert "policy.image" in odd.stderr


def test_render_takes_pools_from_a_platform_file(manifest: Path, tmp_path: Path) -> None:
    platform = tmp_path / "platform.yaml"
    platform.write_text('pools: {onDemand: {nodeSelector: {pool: "on"}}}\nimage: trainer:1\n')
    pods = [
        found
        for found in YAML(typ="safe", pure=True).load_all(
            alignctl("render", str(manifest), "--platform", str(platform)).stdout
        )
        if found["kind"] == "Pod"
    ]
    assert {pod["spec"]["containers"][0]["image"] for pod in pods} == {"trainer:1"}
    (policy,) = [pod for pod in pods if pod["metadata"]["labels"]["alignment.run/role"] == "policy"]
    assert policy["spec"]["nodeSelector"] == {"pool": "on"}
    assert '"on"' in alignctl("render", str(manifest), "--platform", str(platform)).stdout, "kubectl reads `on` as true"


def test_render_refuses_what_the_operator_would(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(JOB.replace("pvc://models/base", "file://./model"))
    result = alignctl("render", str(file))
    assert result.exit_code == 1
    assert "spec.model.source: `file://./model` is relative to a manifest" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["validate", "no.yaml"], "no.yaml: there is no such file; write the path of a manifest"),
        (["validate", "."], "is a folder; write the path of a manifest"),
        (["status", "no-run"], "no-run: no run was started here; write the folder of one"),
        (["run", "no.yaml", "--volume", "x"], "--volume x: write --volume CLAIM=FOLDER"),
        (["run", "no.yaml", "--volume", "x=/no/where"], "there is no folder /no/where; make it, or name another"),
    ],
)
def test_a_users_mistake_is_told_without_a_traceback(arguments: list[str], words: str) -> None:
    result = alignctl(*arguments)
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_run_says_which_folder_must_stand_for_a_claim(manifest: Path) -> None:
    result = alignctl("run", str(manifest))
    assert result.exit_code == 1
    assert f"{manifest}:5: spec.model.source: `pvc://models/base` is a volume of a cluster" in result.stderr
    assert "--volume models=FOLDER" in result.stderr
    assert "--volume data=FOLDER" in result.stderr


def test_run_asks_the_rules_of_a_job_that_begins_and_not_of_one_that_goes_on(tmp_path: Path) -> None:
    """The folder of the second was begun by a release that let it in."""
    file, folder = tmp_path / "job.yaml", RunFolder(tmp_path / "run")
    file.write_text(
        JOB.replace("pvc://models/base", "file:///no/model")
        .replace("pvc://data/pairs.jsonl", "file:///no/pairs.jsonl")
        .replace("{reference: {replicas: 2}}", "{critic: {cpu: 2}}")
    )
    first = alignctl("run", str(file), "--folder", str(folder.path))
    assert first.exit_code == 1
    assert first.stderr.strip() == (
        f"{file}:8: spec.roles.critic: found cpu; dpo has no role critic (its roles: prepare, policy, reference, "
        "evaluator): remove it"
    )
    folder.lock()
    folder.unlock()
    folder.write_job(read_begun_manifest(file.read_text()))
    again = alignctl("run", str(file), "--folder", str(folder.path))
    assert again.exit_code == 1
    assert "critic" not in again.stderr
    assert "spec.model.source: /no/model does not exist" in again.stderr


def test_status_shows_the_columns_and_the_conditions(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    folder.unlock()
    folder.write_job(read_manifest(JOB))
    status = AlignmentJobStatus(
        phase="Running",
        stage="train",
        algorithm="dpo",
        progress_text="3/9",
        precision=PrecisionReport(value="fp32", why="the CPU has no bf16"),
        learning_rate=LearningRateReport(value=5e-7, why="the default of dpo"),
    )
    folder.write_status(status)
    result = alignctl("status", str(folder.path))
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["NAME", "ALGORITHM", "STAGE", "PHASE", "PROGRESS", "ETA", "READY"],
        ["helpful", "dpo", "train", "Running", "3/9", "0/0"],
        ["computes", "in", "fp32:", "the", "CPU", "has", "no", "bf16"],
        ["learns", "at", "a", "rate", "of", "5e-07", "at", "most:", "the", "default", "of", "dpo"],
    ]


def test_validate_looks_into_the_folder_that_stands_for_a_claim(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    result = alignctl("validate", str(manifest), "--volume", f"data={tmp_path}", "--volume", f"models={tmp_path}")
    assert result.exit_code == 1
    assert result.stderr.startswith("pairs.jsonl:1: `rejected` is missing; found `prompt`, `chosen`")
    dropped = tmp_path / "dropped.yaml"
    dropped.write_text(JOB.replace("pairs.jsonl}", "pairs.jsonl, onInvalid: drop}"))
    assert alignctl("validate", str(dropped), "--volume", f"data={tmp_path}").exit_code == 0


def test_validate_reads_every_file_of_a_pattern(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    manifest.write_text(JOB.replace("pairs.jsonl", "pairs-*.jsonl"))
    pair = '{"prompt": "a", "chosen": "b", "rejected": "c", "weight": %s}\n'
    for part, weight in (("0", "1"), ("1", "2.5")):
        (tmp_path / f"pairs-{part}.jsonl").write_text(pair % weight)
    volumes = ("--volume", f"data={tmp_path}", "--volume", f"models={tmp_path}")
    assert alignctl("validate", str(manifest), *volumes).exit_code == 0
    (tmp_path / "pairs-1.jsonl").write_text(pair % "2.5" + pair % "-1")
    result = alignctl("validate", str(manifest), *volumes)
    assert result.exit_code == 1
    assert result.stderr.startswith("pairs-1.jsonl:2: `weight` is -1; write 0 or more")


def lengths(folder: Path, split: str, chosen: list[int], rejected: list[int]) -> None:
    (folder / "prepared").mkdir(exist_ok=True)
    tensors = {"lengths_tokens": np.array([chosen, rejected], np.int32).T.reshape(-1).copy()}
    save_file(tensors, folder / "prepared" / f"{split}.safetensors")


def test_the_length_baseline_takes_its_direction_from_the_training_rows(tmp_path: Path) -> None:
    """Longer is chosen in 1 of 3 training rows, so the rule is `shorter`: right in 2 of 4, and one tie is a half."""
    lengths(tmp_path, "train", [5, 1, 1], [1, 5, 5])
    lengths(tmp_path, "evaluation", [1, 1, 9, 4], [5, 5, 1, 4])
    assert length_baseline(tmp_path) == 2.5 / 4
    assert length_baseline(tmp_path / "gone") is None


@pytest.mark.parametrize(("seconds", "words"), [(12.4, "12s"), (185, "3m05s"), (7800, "2h10m"), (59.6, "1m00s")])
def test_durations_read_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_without_a_terminal_progress_is_lines_and_nothing_is_said_twice() -> None:
    output = StringIO()
    status = AlignmentJobStatus(
        phase="Running",
        stage="train",
        progress=Progress(step=12, total_steps=80, tokens_per_second=512.4, eta_seconds=130),
        metrics={"loss": 0.6543, "reward_margin": 0.12, "accuracy": 0.61},
        precision=PrecisionReport(value="bf16", why="the CPU has bf16"),
        micro_batch=MicroBatchReport(tokens=8192, recompute_layers=6, why="takes 4.0 of 9.0 GiB free"),
    )
    policy = PodView(
        name="p",
        uid="u",
        role="policy",
        index=0,
        life=1,
        stage="train",
        phase="Running",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        status=InstanceStatus(state="training", ready=True, memory_bytes=2**31),
    )
    with Display(Console(file=output, width=200), "tiny") as display:
        display.show(status, (policy,))
        display.show(status, (policy,))
    lines = [line.split(" ", 1)[1] for line in output.getvalue().splitlines()]
    assert lines == [
        "tiny: Running",
        "stage train",
        "computes in bf16: the CPU has bf16",
        "computes 8,192 tokens at once, 6 layers recomputed: takes 4.0 of 9.0 GiB free",
        "policy-0: training",
        "train  step 12/80  loss 0.6543  margin 0.12  accuracy 0.61  512 tokens/s  ETA 2m10s  2.0 GiB",
    ]


def test_a_screen_never_stands_still_for_long() -> None:
    """Ten seconds without a line bring one that says who does what, and when it was."""
    output, now = StringIO(), [100.0]
    status = AlignmentJobStatus(phase="Running", stage="train")
    policy = PodView("p", "u", "policy", 0, 1, "train", "Running", datetime(2026, 1, 1, tzinfo=UTC))
    with Display(Console(file=output, width=200), "tiny", clock=lambda: now[0]) as display:
        for seconds in (0, 5, 11, 5, 5):
            now[0] += seconds
            display.show(status, (policy,))
    lines = [line.split(" ", 1)[1] for line in output.getvalue().splitlines()]
    assert lines == [
        "tiny: Running",
        "stage train",
        "policy-0: starting",
        "16s  policy-0: starting",
        "26s  policy-0: starting",
    ]


def test_the_summary_tells_the_reward_model_before_what_was_trained_with_it(tmp_path: Path) -> None:
    def figures(**values: tuple[float, int]) -> dict[str, Interval]:
        return {n: Interval(value=v, low=v - 0.1, high=v + 0.1, count=count) for n, (v, count) in values.items()}

    at = datetime(2026, 1, 1, tzinfo=UTC)
    judged = EvaluationReport(before=figures(accuracy=(0.5, 200)), after=figures(accuracy=(0.75, 200)))
    better = EvaluationReport(before=figures(reward=(0.25, 64)), after=figures(reward=(0.5, 64), kl=(0.125, 64)))
    stages = (StageStatus(name="reward", started_at=at, finished_at=at, evaluation=judged),)
    output = StringIO()
    status = AlignmentJobStatus(phase="Complete", stages=stages, evaluation=better, active_seconds=60)
    print_summary(Console(file=output, width=100), "tiny", status, tmp_path, str(tmp_path))
    assert [line.rstrip() for line in output.getvalue().splitlines()][:8] == [
        "tiny is complete after 1m00s",
        "reward model",
        "200 held out  before                after",
        "accuracy      0.500 [0.400, 0.600]  0.750 [0.650, 0.850]",
        "64 held out                           before                after",
        "reward                                0.250 [0.150, 0.350]  0.500 [0.400, 0.600]",
        "KL to the reference (nats per token)                        0.125 [0.025, 0.225]",
        f"model   {tmp_path / 'model'}",
    ]
