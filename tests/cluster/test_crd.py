"""The generated CRD on a real apiserver: what it refuses, what it fills in, what it lets change."""

import copy
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.corpus import Expectation, expectations
from tests.rig.cluster import Rig
from tests.rule_examples import broken_job, broken_text, examples

from alignment_api.crd import custom_resource_definition
from alignment_api.rules.check import why_not_stored
from alignment_api.rules.mutability import immutable_changes
from alignment_api.yaml.manifest import read_manifest

pytestmark = pytest.mark.cluster

JOB: dict[str, Any] = {
    "apiVersion": "alignment.run/v1alpha1",
    "kind": "AlignmentJob",
    "metadata": {"name": "immutable", "namespace": "default"},
    "spec": {
        "model": {"source": "pvc://models/base"},
        "data": {"source": "pvc://data/pairs.jsonl"},
        "algorithm": {"dpo": {"beta": 0.1}},
        "roles": {"policy": {"cpu": 4, "podTemplate": {"spec": {"hostNetwork": False}}}},
        "credentials": [{"secretName": "hf-token"}],
    },
}
CHANGES: dict[str, tuple[tuple[str, ...], Any]] = {
    "a learning rate": (("training", "learningRate"), 1e-5),
    "the data": (("data", "source"), "pvc://data/other.jsonl"),
    "the algorithm's beta": (("algorithm", "dpo", "beta"), 0.2),
    "a storage that was absent": (("storage",), {"source": "pvc://work/run"}),
    "an image that was absent": (("image",), "trainer:2"),
    "the policy's memory": (("roles", "policy", "memory"), "32Gi"),
    "the policy's pod template": (("roles", "policy", "podTemplate", "spec", "hostNetwork"), True),
    "the reference's placement": (("roles", "reference", "placement"), "onDemand"),
    "credentials": (("credentials",), []),
}
ALLOWED: dict[str, tuple[tuple[str, ...], Any]] = {
    "suspend": (("suspend",), True),
    "the reference's replicas": (("roles", "reference", "replicas"), 5),
    "a budget": (("budgets", "failures"), 9),
    "a deadline that was absent": (("activeDeadlineSeconds",), 3600),
    "the deadline for getting ready": (("readyDeadlineSeconds",), 7200),
    "the deadline for a step": (("stallDeadlineSeconds",), 7200),
}


@pytest.fixture(scope="module")
def cluster(control_plane: Rig) -> Rig:
    control_plane.apply(custom_resource_definition())
    control_plane.kubectl("wait", "--for=condition=Established", "crd/alignmentjobs.alignment.run")
    return control_plane


@pytest.fixture(scope="module")
def job(cluster: Rig) -> Rig:
    cluster.kubectl("create", "-f", "-", stdin=json.dumps(JOB))
    return cluster


def changed(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """JOB as it stands in the cluster, with one field of its spec set."""
    after = copy.deepcopy(JOB)
    parent = after["spec"]
    for name in path[:-1]:
        parent = parent.setdefault(name, {})
    parent[path[-1]] = value
    return after


def refusal(cluster: Rig, *arguments: str, stdin: str | None = None) -> str:
    with pytest.raises(subprocess.CalledProcessError) as error:
        cluster.kubectl(*arguments, stdin=stdin)
    return str(error.value.stderr)


@pytest.mark.parametrize("expectation", expectations("apiserver"), ids=str)
def test_the_apiserver_refuses(expectation: Expectation, cluster: Rig) -> None:
    words = refusal(cluster, "create", "--validate=strict", "--dry-run=server", "-f", str(expectation.file))
    assert re.search(expectation.pattern, words), words


@pytest.mark.parametrize("name", examples())
def test_a_rule_of_the_table_is_held_by_the_apiserver_in_the_same_words(name: str, cluster: Rig) -> None:
    rule = examples()[name]
    (problem,) = why_not_stored(broken_job(rule))
    field, _, message = problem.partition(": ")
    words = refusal(cluster, "create", "--dry-run=server", "-n", "default", "-f", "-", stdin=broken_text(rule))
    assert rule.message in words
    assert message.endswith(rule.message)
    assert field in words
    assert len(re.findall("Invalid value", words)) == 1, "its example breaks it alone"


@pytest.mark.parametrize("gate", ["condition", "prepare"])
def test_the_apiserver_admits_what_a_later_gate_refuses(gate: str, cluster: Rig) -> None:
    for expectation in expectations(gate):
        cluster.kubectl("create", "--validate=strict", "--dry-run=server", "-f", str(expectation.file))


def test_the_apiserver_fills_in_the_defaults_of_the_types(job: Rig) -> None:
    stored = job.get("alignmentjob", "immutable")
    ours = read_manifest(json.dumps(JOB)).spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    ours["credentials"] = [{"secretName": "hf-token"}]
    stored["spec"]["roles"]["policy"]["cpu"] = str(stored["spec"]["roles"]["policy"]["cpu"])
    assert stored["spec"] == ours
    assert "status" not in stored


def test_a_whole_number_is_fine_where_a_bound_is_a_fraction(cluster: Rig) -> None:
    trusting = changed(("algorithm", "dpo"), {"beta": 1, "labelSmoothing": 0})
    cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(renamed(trusting, "trusting")))


def renamed(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return manifest | {"metadata": {"name": name, "namespace": "default"}}


@pytest.mark.parametrize("what", CHANGES)
def test_a_job_keeps(what: str, job: Rig) -> None:
    path, value = CHANGES[what]
    words = refusal(job, "replace", "-f", "-", stdin=json.dumps(changed(path, value)))
    field = ".".join(("spec", *path))
    (named,) = re.findall(r"(spec[\w.]*) is immutable: delete the job and apply it anew", words)
    assert field.startswith(named)
    before, after = (read_manifest(json.dumps(manifest)).spec for manifest in (JOB, changed(path, value)))
    assert immutable_changes(before, after), "alignctl run refuses the same change"


@pytest.mark.parametrize("what", ALLOWED)
def test_a_job_may_change(what: str, job: Rig) -> None:
    path, value = ALLOWED[what]
    job.kubectl("replace", "--dry-run=server", "-f", "-", stdin=json.dumps(changed(path, value)))
    before, after = (read_manifest(json.dumps(manifest)).spec for manifest in (JOB, changed(path, value)))
    assert not immutable_changes(before, after)


def test_explain_shows_a_default_with_its_reason(cluster: Rig) -> None:
    words = cluster.kubectl("explain", "aj.spec.algorithm.dpo.beta", "--api-version=alignment.run/v1alpha1")
    assert "default: 0.1" in words.lower()
    assert "0.05-0.2 is usual" in " ".join(words.split())


def test_get_shows_the_columns(job: Rig) -> None:
    status = {"status": {"algorithm": "dpo", "stage": "train", "phase": "Running", "ready": "3/3", "eta": "2h10m"}}
    status["status"]["progressText"] = "412/781"
    job.kubectl("patch", "aj", "immutable", "--subresource=status", "--type=merge", "-p", json.dumps(status))
    head, row = job.kubectl("get", "aj").splitlines()
    assert head.split() == ["NAME", "ALGORITHM", "STAGE", "PHASE", "PROGRESS", "ETA", "READY", "AGE"]
    assert row.split()[:7] == ["immutable", "dpo", "train", "Running", "412/781", "2h10m", "3/3"]


def test_every_example_is_admitted(cluster: Rig) -> None:
    examples = [
        file
        for file in (Path(__file__).parents[2] / "examples").glob("*.yaml")
        if "kind: AlignmentJob" in file.read_text()
    ]
    assert examples
    for example in examples:
        cluster.kubectl("create", "--validate=strict", "--dry-run=server", "-f", str(example))


@pytest.mark.parametrize("role", ["rollout", "reward"])
def test_a_job_never_gets_servers_of_a_role_that_it_does_not_have(role: str, job: Rig) -> None:
    scaled = changed(("roles", role, "replicas"), 3)
    words = refusal(job, "replace", "--dry-run=server", "-f", "-", stdin=json.dumps(scaled))
    assert f"dpo has no role {role}" in words
    assert f"spec.roles.{role}" in words
