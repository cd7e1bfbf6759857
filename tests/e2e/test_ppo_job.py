"""kubectl apply of a PPO job of three stages and five roles: what is lost on the way, and what of it restarts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.jobs import (
    COMPLETIONS_PER_PROMPT,
    PPO_STEPS,
    PROMPTS_PER_ROLLOUT,
    STEPS_BEFORE_THE_WAIT,
    Jobs,
    PodHistory,
    checkpoint,
    judging_no_more_than,
    ppo_job,
)

from alignment_trainer.data.storage import Folder
from alignment_trainer.experience.record import read_rollouts

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

NAME = "ppo"


def test_servers_come_and_go_actor_and_critic_resume_together_and_every_prompt_is_accounted_for(
    jobs: Jobs, work: Path
) -> None:
    with jobs.watching(NAME) as history:
        allowed = STEPS_BEFORE_THE_WAIT * PROMPTS_PER_ROLLOUT * COMPLETIONS_PER_PROMPT
        with judging_no_more_than(allowed, work):
            jobs.apply(ppo_job(NAME))
            jobs.wait(NAME, "stage reward", lambda status: status.get("stage") == "reward")
            assert _row(jobs)[:3] == [NAME, "ppo", "reward"]
            jobs.wait(NAME, "a first checkpoint of PPO", _has_checkpoint)
            assert _row(jobs)[:4] == [NAME, "ppo", "train", "Running"]
            _assert_gang_is_scheduled_together(jobs, history)

            jobs.rig.kill_container(_newest(history, "rollout", 0), jobs.namespace)
            _scale(jobs, "rollout", 3)
            jobs.wait(NAME, "three rollout servers while it trains", _has_three_servers)
            assert [len(history.of(role)) for role in ("actor", "critic", "reward", "reference")] == [1, 1, 1, 1]

            jobs.rig.kill_container(_newest(history, "actor", 0), jobs.namespace)
            jobs.wait(NAME, "a second attempt", lambda status: status.get("attempt") == 3)
            _scale(jobs, "rollout", 1)
        status = jobs.wait_complete(NAME)

    _assert_placement(history)
    _assert_resumed_together(work / NAME, history)
    _assert_every_prompt_is_accounted_for(work / NAME)
    reward = next(stage for stage in status["stages"] if stage["name"] == "reward")["evaluation"]["after"]["accuracy"]
    assert reward["count"] >= 200
    assert reward["low"] > 0.5
    assert {"reward", "reward/trained", "reward/python", "kl", "length"} <= set(status["evaluation"]["after"])
    assert [stage["name"] for stage in status["stages"]] == ["prepare", "reward", "train", "evaluate"]
    assert history.doubled() == []


def _assert_gang_is_scheduled_together(jobs: Jobs, history: PodHistory) -> None:
    """Both pods name one PodGroup that waits for two."""
    pods = [jobs.rig.get("pod", _newest(history, role, 0), "-n", jobs.namespace) for role in ("actor", "critic")]
    (group,) = {pod["spec"]["schedulingGroup"]["podGroupName"] for pod in pods}
    found = jobs.rig.get("podgroup", group, "-n", jobs.namespace)
    assert found["spec"]["schedulingPolicy"]["gang"]["minCount"] == 2


def _assert_placement(history: PodHistory) -> None:
    trainable = [life for role in ("policy", "actor", "critic") for life in history.of(role)]
    frozen = [life for role in ("reference", "reward", "rollout", "evaluator") for life in history.of(role)]
    assert {life.node for life in trainable} == {"ondemand-0"}
    assert {life.node.split("-")[0] for life in frozen if life.node} == {"spot"}


def _assert_resumed_together(storage: Path, history: PodHistory) -> None:
    lives = [[life.life for life in history.of(role)] for role in ("actor", "critic")]
    assert lives[0] == lives[1]
    assert len(lives[0]) == 2
    claims = [json.loads(path.read_text()) for path in sorted((storage / "claims").glob("*.json"))]
    assert [claim["attempt"] for claim in claims] == lives[0]
    start = claims[1]["start"]
    (manifest,) = (storage / "checkpoints" / f"{start['term']:04d}").glob(f"{start['step']:08d}*/manifest.json")
    parts = {part["name"].split("-")[0] for part in json.loads(manifest.read_text())["parts"]}
    assert {"state", "critic"} <= parts


def _assert_every_prompt_is_accounted_for(storage: Path) -> None:
    """Each step has every prompt of its batch once, trained on or dropped; each epoch has every prompt once."""
    records = read_rollouts(Folder(storage))
    assert [record.step for record in records] == list(range(1, PPO_STEPS + 1))
    for record in records:
        assert len(record.rows) + len(record.dropped) == PROMPTS_PER_ROLLOUT
        assert len({*record.rows, *record.dropped}) == len(record.rows) + len(record.dropped)
    seen = Counter(row for record in records for row in (*record.rows, *record.dropped))
    assert max(seen.values()) == 1


def _row(jobs: Jobs) -> list[str]:
    return jobs.rig.kubectl("get", "aj", NAME, "-n", jobs.namespace, "--no-headers").split()


def _has_checkpoint(status: dict[str, Any]) -> bool:
    return status.get("stage") == "train" and checkpoint(status) > 0


def _has_three_servers(status: dict[str, Any]) -> bool:
    return status.get("stage") == "train" and _ready(status, "rollout") == 3


def _ready(status: dict[str, Any], role: str) -> int:
    return int(next(entry["ready"] for entry in status["roles"] if entry["name"] == role))


def _newest(history: PodHistory, role: str, index: int) -> str:
    return max((life for life in history.of(role) if life.index == index), key=lambda life: life.life).name


def _scale(jobs: Jobs, role: str, replicas: int) -> None:
    patch = json.dumps({"spec": {"roles": {role: {"replicas": replicas}}}})
    jobs.rig.kubectl("patch", "aj", NAME, "-n", jobs.namespace, "--type=merge", "-p", patch)
