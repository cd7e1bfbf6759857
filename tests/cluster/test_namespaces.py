"""The chart's watchNamespaces: operators that have rights in one namespace each, beside one of the whole cluster."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.operating import CLAIM, SCORED, TRAINED, Operator, Place, eventually
from tests.cluster.test_chart import may, render
from tests.rig import control_plane as configuration
from tests.rig.cluster import Rig

pytestmark = pytest.mark.cluster
SYSTEM = "alignment-of-teams"
TEAM, OTHER = "served-team", "served-other"
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "CustomResourceDefinition"}


@pytest.fixture(scope="module")
def objects(cluster: Rig) -> Iterator[list[dict[str, Any]]]:
    """What somebody installs who has no rights beyond two namespaces and the release's."""
    off = (f"{part}.install=false" for part in ("crd", "userRoles", "admissionPolicy"))
    rendered = render(cluster, f"watchNamespaces={{{TEAM},{OTHER}}}", *off, namespace=SYSTEM)
    for namespace in (SYSTEM, TEAM, OTHER):
        cluster.kubectl("create", "namespace", namespace)
    cluster.apply(*rendered)
    yield rendered
    for namespace in (SYSTEM, TEAM, OTHER):
        cluster.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture
def team(cluster: Rig, objects: list[dict[str, Any]]) -> Place:
    place = Place(cluster, TEAM)
    place.create(CLAIM)
    return place


def as_account(cluster: Rig, name: str, folder: Path) -> Path:
    """A kubeconfig with a token of one of the chart's service accounts."""
    token = cluster.kubectl("create", "token", name, "-n", SYSTEM).strip()
    file = folder / f"{name}.json"
    file.write_text(json.dumps(configuration.kubeconfig(cluster.layout, token)))
    return file


def test_it_installs_nothing_of_the_whole_cluster(objects: list[dict[str, Any]]) -> None:
    assert not CLUSTER_WIDE & {found["kind"] for found in objects}
    deployments = [found for found in objects if found["kind"] == "Deployment"]
    served = {d["spec"]["template"]["spec"]["serviceAccountName"]: d for d in deployments}
    assert set(served) == {f"alignment-{TEAM}", f"alignment-{OTHER}"}
    for name, deployment in served.items():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert f"--namespace={name.removeprefix('alignment-')}" in container["args"]
    selectors = [json.dumps(d["spec"]["selector"], sort_keys=True) for d in deployments]
    assert len(set(selectors)) == 2


@pytest.mark.parametrize(
    ("verb", "what", "namespace", "allowed"),
    [
        ("create", "pods", TEAM, True),
        ("create", "pods", OTHER, False),
        ("create", "pods", SYSTEM, False),
        ("create", "secrets", "kube-system", False),
        ("list", "nodes", "", False),
        ("update", "leases.coordination.k8s.io:alignment-jobs", TEAM, True),
        ("update", "leases.coordination.k8s.io:another", TEAM, False),
        ("create", "leases.coordination.k8s.io", "kube-system", False),
    ],
)
def test_an_operator_of_a_namespace_may(
    verb: str, what: str, namespace: str, allowed: bool, cluster: Rig, objects: list[dict[str, Any]]
) -> None:
    account = f"system:serviceaccount:{SYSTEM}:alignment-{TEAM}"
    assert may(cluster, account, verb, what, namespace) is allowed


def test_it_runs_a_whole_job_and_the_operator_of_the_cluster_leaves_it_alone(team: Place, tmp_path: Path) -> None:
    everyone = Operator(team, tmp_path, everywhere=True)
    own = Operator(team, tmp_path, kubeconfig=as_account(team.rig, f"alignment-{TEAM}", tmp_path))
    with started(everyone), started(own):
        team.create_job()
        team.play_to_training()
        assert team.condition("PoolsAvailable")["reason"] == "NodesNotListed"
        mine = f'alignment_operator_jobs{{namespace="{TEAM}",phase="Running"}}'
        eventually(lambda: own.metric(mine) == 1, "its own operator to count it")
        assert not everyone.metric(mine)
        assert everyone.metric('alignment_operator_reconcile_seconds_count{result="left"}')
        own.kill(signal.SIGTERM)
        (forbidden,) = own.errors()
        assert forbidden["path"] == "/api/v1/nodes"
        team.end("policy", TRAINED)
        team.end("evaluator", SCORED)
        eventually(lambda: team.status()["phase"] == "Complete", "the operator of the cluster to take over")


@contextmanager
def started(operator: Operator) -> Iterator[None]:
    """It runs, leads, and ends with the test."""
    operator.start()
    try:
        eventually(operator.is_healthy, "it to lead")
        yield
    finally:
        if operator.is_running():
            operator.kill()
