"""Jobs that another release has stored, on the real apiserver: nothing of them is lost, and none is abandoned."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.operating import CLAIM, JOB, Place, eventually, operating
from tests.rig.cluster import Rig

from alignment_api.crd import custom_resource_definition

pytestmark = pytest.mark.cluster
_numbers = count(1)

START = "2026-11-20T00:00:00Z"
LOOSER: dict[str, Any] = {
    "algorithm": {"ppo": {"rewards": [{"function": {"numericAnswer": {}}}], "maxNewTokens": 4096}},
    "data": {"source": "pvc://inputs/../prompts.jsonl"},
    "training": {"batchSize": 48, "learningRate": -1},
    "roles": {"policy": {"gpus": 1, "processes": 1}, "actor": {"replicas": 1}, "rollout": {"replicas": 300}},
}
"""Against rules, bounds, a source's form."""
NEWER: dict[str, Any] = {
    "algorithm": {"dpo": {"beta": 0.1, "entropyBonus": 0.5}},
    "training": {"microBatchTokens": "most"},
    "spotFallback": {"afterSeconds": 600},
}
"""An option, a type and a field that this release does not have."""
STATUS: dict[str, Any] = {
    "phase": "Running",
    "startedAt": START,
    "cost": {"usd": 1.5},
    "stages": [{"name": "prepare", "startedAt": START, "gpuSeconds": 7}],
    "conditions": [
        {"type": "Budgeted", "status": "True", "reason": "Paid", "lastTransitionTime": START, "message": "of May"}
    ],
}
"""What a newer release and another controller have written."""


def without_rules(level: Any) -> Any:
    """A schema that lets anything of the right shape in: that of a looser and of a newer release at once."""
    if isinstance(level, list):
        return [without_rules(item) for item in level]
    if not isinstance(level, dict):
        return level
    bounds = ("minimum", "maximum", "exclusiveMinimum", "pattern", "maxLength", "x-kubernetes-validations")
    loose = {key: without_rules(value) for key, value in level.items() if key not in bounds}
    if isinstance(level.get("properties"), dict):
        loose["x-kubernetes-preserve-unknown-fields"] = True
    return loose


@pytest.fixture
def place(cluster: Rig) -> Iterator[Place]:
    made = Place(cluster, f"stored-{next(_numbers)}")
    cluster.kubectl("create", "namespace", made.namespace)
    made.create(CLAIM)
    yield made
    cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


@pytest.fixture
def other_release(place: Place) -> Iterator[Place]:
    """The CRD of another release, in which those jobs were let in; ours comes back, whatever becomes of the test."""
    crd = custom_resource_definition()
    version = crd["spec"]["versions"][0]
    version["schema"] = without_rules(copy.deepcopy(version["schema"]))
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    spec["training"]["properties"]["microBatchTokens"] = {"x-kubernetes-preserve-unknown-fields": True}
    place.rig.apply(crd)
    try:
        eventually(lambda: _lets_in(place), "the looser schema")
        yield place
    finally:
        place.rig.apply(custom_resource_definition())


def _lets_in(place: Place) -> bool:
    job = JOB | {"metadata": {"name": "7probe"}, "spec": JOB["spec"] | LOOSER}  # type: ignore[operator]
    try:
        place.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(job))
    except subprocess.CalledProcessError:
        return False
    return True


def _ours_again(place: Place) -> None:
    place.rig.apply(custom_resource_definition())
    eventually(lambda: not _lets_in(place), "our own schema")


def started(place: Place, name: str, spec: dict[str, Any]) -> None:
    """A job that the other release has let in, and started."""
    place.create_job(name, **spec)
    place.kubectl("patch", "aj", name, "--subresource=status", "--type=merge", "-p", json.dumps({"status": STATUS}))


def test_a_started_job_of_a_looser_release_is_managed_suspended_and_ended(other_release: Place, tmp_path: Path) -> None:
    place = other_release
    started(place, "7b-looser", LOOSER)
    _ours_again(place)
    with operating(place, tmp_path):
        place.pod("prepare")
        place.kubectl("patch", "aj", "7b-looser", "--type=merge", "-p", '{"spec": {"suspend": true}}')
        eventually(lambda: place.status("7b-looser")["phase"] == "Suspended", "the phase")
        scaled = '{"spec": {"suspend": false, "roles": {"rollout": {"replicas": 2}}}}'
        place.kubectl("patch", "aj", "7b-looser", "--type=merge", "-p", scaled)
        place.pod("prepare", life=2)
        assert place.condition("Admitted", "7b-looser")["status"] == "True"


def test_servers_that_no_rule_lets_in_may_still_be_scaled_and_what_was_mended_stays(other_release: Place) -> None:
    place = other_release

    def scale(replicas: int) -> str:
        change = {"spec": {"suspend": True, "roles": {"rollout": {"replicas": replicas}}}}
        return place.kubectl("patch", "aj", "odd", "--type=merge", "-p", json.dumps(change))

    place.create_job("odd", roles={"rollout": {"replicas": 2}})
    _ours_again(place)
    scale(3)
    scale(1)
    with pytest.raises(subprocess.CalledProcessError) as refused:
        scale(2)
    assert "dpo has no role rollout" in refused.value.stderr


def _fails_once(place: Place, job: str) -> None:
    """The next try of `prepare` is made, so that every part of the status has been written by us."""
    place.run("prepare")
    place.end("prepare", {"result": "failed", "failure": {"reason": "Odd", "message": "once", "retryable": True}})
    place.pod("prepare", life=2)
    eventually(lambda: any(role["failures"] for role in place.status(job)["roles"]), "the count")


def _has_lost_nothing(place: Place, job: str) -> None:
    status = place.status(job)
    assert status["cost"] == STATUS["cost"]
    assert status["stages"][0]["gpuSeconds"] == 7
    assert place.condition("Budgeted", job) == STATUS["conditions"][0]


def test_an_operator_that_was_rolled_back_loses_nothing(other_release: Place, tmp_path: Path) -> None:
    place = other_release
    started(place, "newer", NEWER)
    with operating(place, tmp_path):
        _fails_once(place, "newer")
    _has_lost_nothing(place, "newer")
    (config,) = (item for item in place.items("configmaps") if "job.yaml" in item["data"])
    spec = json.loads(config["data"]["job.yaml"])["spec"]
    assert spec["algorithm"]["dpo"]["entropyBonus"] == 0.5, "pods are handed what was let in"
    assert spec["training"]["microBatchTokens"] == "most"
    assert spec["spotFallback"] == NEWER["spotFallback"]


def test_nor_does_one_whose_crd_was_rolled_back_too(other_release: Place, tmp_path: Path) -> None:
    """The apiserver then cuts unknown fields out of the spec, and lets no field change its type."""
    place = other_release
    started(place, "newer", {key: value for key, value in NEWER.items() if key != "training"})
    _ours_again(place)
    with operating(place, tmp_path):
        _fails_once(place, "newer")
    _has_lost_nothing(place, "newer")


def test_the_same_jobs_are_refused_where_they_ask_to_start(other_release: Place, tmp_path: Path) -> None:
    place = other_release
    place.create_job("7b-looser", **LOOSER)
    place.create_job("newer", **NEWER)
    place.create_job("none", algorithm={"bco": {}})
    with operating(place, tmp_path):
        words = {
            name: eventually(lambda name=name: place.condition("Admitted", name), "a word")
            for name in ("7b-looser", "newer", "none")
        }
    assert {word["status"] for word in words.values()} == {"False"}
    assert place.items("pods") == []
    for field in ("metadata.name", "spec.data.source", "spec.training.learningRate", "spec.roles.policy"):
        assert f"{field}: " in words["7b-looser"]["message"]
    for field in ("spec.algorithm.dpo.entropyBonus", "spec.training.microBatchTokens", "spec.spotFallback"):
        assert f"{field}: " in words["newer"]["message"]
    assert "spec.algorithm.bco: unknown field" in words["none"]["message"]


def test_others_add_conditions_and_neither_takes_away_what_the_other_wrote(place: Place, tmp_path: Path) -> None:
    condition = {
        "type": "acme.io/Budgeted",
        "status": "True",
        "reason": "Paid",
        "message": "",
        "lastTransitionTime": START,
    }
    theirs = {"apiVersion": JOB["apiVersion"], "kind": JOB["kind"], "metadata": {"name": "dpo"}}
    theirs |= {"status": {"conditions": [condition]}}

    def apply() -> str:
        arguments = ("apply", "--server-side", "--subresource=status", "--field-manager=acme", "-f", "-")
        return place.kubectl(*arguments, stdin=json.dumps(theirs))

    with operating(place, tmp_path):
        place.create_job()
        eventually(lambda: place.condition("Admitted"), "our condition")
        apply()
        place.run("prepare")
        eventually(lambda: place.status()["phase"] == "Running", "a pass that writes")
        apply()
        assert place.condition("acme.io/Budgeted") == condition
        assert place.condition("Admitted")["status"] == "True"
