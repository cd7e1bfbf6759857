"""A PPO job on a real control plane: stages, the gang as a PodGroup, servers that come and go. No pod ever starts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from tests.cluster.operating import CLAIM, FAILED, PLATFORM, PREPARED, SCORED, TRAINED, Place, eventually, operating
from tests.rig.cluster import Rig

pytestmark = pytest.mark.cluster
PPO = {"ppo": {"rewards": [{"train": {"preferences": {"source": "pvc://inputs/judged.jsonl"}}}]}}
FROZEN = ("reference", "reward", "rollout")
_numbers = count(1)


@pytest.fixture
def place(cluster: Rig, tmp_path: Path) -> Iterator[Place]:
    made = Place(cluster, f"five-{next(_numbers)}")
    cluster.kubectl("create", "namespace", made.namespace)
    made.create(CLAIM)
    (tmp_path / "platform.yaml").write_text(f"{PLATFORM}gang: podGroup\n")
    yield made
    cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


def play_to_training(place: Place) -> None:
    """The reward model is made; the servers and the gang run."""
    place.create_job("ppo", algorithm=PPO)
    place.run("prepare")
    place.end("prepare", PREPARED)
    place.run("policy")
    place.end("policy", TRAINED | {"evaluation": SCORED["evaluation"]})
    for role in FROZEN:
        place.run(role)
    for role in ("actor", "critic"):
        eventually(lambda role=role: not place.pod(role, 2)["spec"].get("schedulingGates"), f"the gate of {role}")
        place.run(role, 2)
    eventually(lambda: place.condition("RolesReady", "ppo").get("status") == "True", "every role to be ready")


def scale(place: Place, replicas: int) -> None:
    patch = {"spec": {"roles": {"rollout": {"replicas": replicas}}}}
    place.kubectl("patch", "aj", "ppo", "--type=merge", "-p", json.dumps(patch))


def test_a_job_of_five_roles_goes_through_its_stages(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        play_to_training(place)
        names = {"ppo-actor-0-2", "ppo-critic-0-2", "ppo-reference-0-1", "ppo-reward-0-1", "ppo-rollout-0-1"}
        eventually(lambda: place.names("pods") == names, "the pods of the stage alone")
        assert place.names("services") == {f"ppo-{role}" for role in ("actor", "critic", "evaluator", *FROZEN)}
        status = place.status("ppo")
        (judged,) = [stage for stage in status["stages"] if stage["name"] == "reward"]
        assert judged["evaluation"]["after"]["accuracy"]["count"] == 40
        assert (status["stage"], status["attempt"], status["ready"]) == ("train", 2, "5/5")
        place.end("actor", TRAINED, 2)
        for role in FROZEN:
            place.run(role, 2)
        eventually(lambda: not place.pod("evaluator")["spec"].get("schedulingGates"), "the evaluator's gate")
        place.run("evaluator")
        place.end("evaluator", SCORED)
        eventually(lambda: place.status("ppo")["phase"] == "Complete", "the end")
        eventually(lambda: not place.names("services") | place.names("podgroups"), "tidiness")


def test_an_attempts_gang_is_a_pod_group_of_its_own(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        play_to_training(place)
        (group,) = place.items("podgroups")
        assert group["spec"]["schedulingPolicy"] == {"gang": {"minCount": 2}}
        assert group["spec"]["disruptionMode"] == {"all": {}}
        joined = {
            pod["metadata"]["labels"]["alignment.run/role"]: pod["spec"].get("schedulingGroup")
            for pod in place.items("pods")
        }
        mine = {"podGroupName": group["metadata"]["name"]}
        assert joined == {"actor": mine, "critic": mine, "reference": None, "reward": None, "rollout": None}
        condition = place.condition("GangScheduling", "ppo")
        assert (condition["status"], condition["reason"]) == ("True", "PodGroup")
        place.end("critic", FAILED, 2)
        place.pod("actor", 3)
        eventually(lambda: place.names("podgroups") == {"ppo-gang-2", "ppo-gang-3"}, "the next attempt's group")


def test_servers_come_and_go_and_no_trainer_restarts(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        play_to_training(place)
        trainers = {pod["metadata"]["uid"] for role in ("actor", "critic") for pod in place.pods(role)}
        scale(place, 3)
        eventually(lambda: len(place.pods("rollout")) == 3, "two servers more")
        place.kubectl("delete", "pod", place.pod("reward")["metadata"]["name"], "--wait=false")
        place.pod("reward", 2)
        scale(place, 1)
        eventually(lambda: len(place.pods("rollout")) == 1, "the servers to go")
        assert {pod["metadata"]["uid"] for role in ("actor", "critic") for pod in place.pods(role)} == trainers
        assert place.status("ppo")["attempt"] == 2


def test_only_servers_may_be_scaled_while_a_job_runs(place: Place, tmp_path: Path) -> None:
    place.create_job("ppo", algorithm=PPO)
    for role in FROZEN:
        place.kubectl(
            "patch", "aj", "ppo", "--type=merge", "-p", f'{{"spec": {{"roles": {{"{role}": {{"replicas": 2}}}}}}}}'
        )
    for role in ("actor", "critic", "policy"):
        patch = f'{{"spec": {{"roles": {{"{role}": {{"replicas": 2}}}}}}}}'
        with pytest.raises(subprocess.CalledProcessError) as refused:
            place.kubectl("patch", "aj", "ppo", "--type=merge", "-p", patch)
        assert f"spec.roles.{role} is immutable" in refused.value.stderr
