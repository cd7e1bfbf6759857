"""The chart as helm renders it, on a real apiserver: what it may do, and what it may not."""

import json
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.cluster.operating import CLAIM, FAILED, JOB, PREPARED, SCORED, TRAINED, Place, eventually, operating
from tests.rig import control_plane as configuration
from tests.rig.cluster import Rig
from tests.rig.product import CHART
from tests.rig.toolchain import HELM, ensure_built

pytestmark = pytest.mark.cluster
NAMESPACE = "alignment-system"
_numbers = count(1)
ACCOUNT = f"system:serviceaccount:{NAMESPACE}:alignment"


def render(cluster: Rig, *settings: str, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
    ensure_built(HELM)
    arguments = [f"--set={setting}" for setting in settings]
    text = cluster.helm(
        "template", "alignment", str(CHART), f"--namespace={namespace}", "--kube-version=1.37.2", *arguments
    )
    return [found for found in YAML(typ="safe").load_all(text) if found]


@pytest.fixture(scope="module")
def objects(cluster: Rig) -> Iterator[list[dict[str, Any]]]:
    """Everything of the chart, in the cluster. The Deployment makes pods, which stay pending here; the admission policy
    goes again, for it holds for the jobs of all other tests, too."""
    rendered = render(cluster)
    cluster.kubectl("create", "namespace", NAMESPACE)
    listing = {"apiVersion": "v1", "kind": "List", "items": rendered}
    arguments = ("apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-")
    cluster.kubectl(*arguments, stdin=json.dumps(listing))
    yield rendered
    cluster.kubectl("delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", "alignment-jobs")


@pytest.fixture
def place(cluster: Rig) -> Iterator[Place]:
    made = Place(cluster, f"chart-{next(_numbers)}")
    cluster.kubectl("create", "namespace", made.namespace)
    made.create(CLAIM)
    yield made
    cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


@pytest.fixture
def as_operator(cluster: Rig, objects: list[dict[str, Any]], tmp_path: Path) -> Path:
    """A kubeconfig with a token of the chart's service account."""
    token = cluster.kubectl("create", "token", "alignment", "-n", NAMESPACE).strip()
    file = tmp_path / "kubeconfig"
    file.write_text(json.dumps(configuration.kubeconfig(cluster.layout, token)))
    return file


def test_the_rights_suffice_for_a_whole_job(place: Place, as_operator: Path, tmp_path: Path) -> None:
    with operating(place, tmp_path, kubeconfig=as_operator):
        place.create_job()
        place.run("prepare")
        eventually(lambda: not place.pod("reference")["spec"].get("schedulingGates"), "the gate to open")
        place.end("prepare", PREPARED)
        place.end("policy", FAILED)
        place.end("policy", TRAINED, life=2)
        place.end("evaluator", SCORED)
        eventually(lambda: place.status()["phase"] == "Complete", "the end")
        eventually(
            lambda: not place.names("secrets") | place.names("services") | place.names("networkpolicies"), "tidiness"
        )
        reasons = {event["reason"] for event in place.items("events")}
        assert {"Admitted", "StageStarted", "AttemptStarted", "StagesDone"} <= reasons


@pytest.mark.parametrize(
    ("verb", "what", "allowed"),
    [
        ("create", "secrets", True),
        ("get", "secrets", False),
        ("list", "secrets", False),
        ("watch", "secrets", False),
        ("update", "pods", False),
        ("patch", "services", True),
        ("patch", "networkpolicies.networking.k8s.io", True),
        ("patch", "configmaps", False),
        ("create", "pods/exec", False),
        ("delete", "persistentvolumeclaims", False),
        *((verb, "podgroups.scheduling.k8s.io", verb != "update") for verb in ("list", "create", "delete", "update")),
        ("update", "alignmentjobs.alignment.run", False),
        ("patch", "alignmentjobs.alignment.run", False),
        ("patch", "alignmentjobs.alignment.run/status", True),
        ("update", "leases.coordination.k8s.io:alignment-jobs", True),
        ("update", "leases.coordination.k8s.io:another", False),
        ("list", "customresourcedefinitions.apiextensions.k8s.io", False),
        ("create", "rolebindings.rbac.authorization.k8s.io", False),
    ],
)
def test_the_operator_may(verb: str, what: str, allowed: bool, cluster: Rig, objects: list[dict[str, Any]]) -> None:
    assert may(cluster, ACCOUNT, verb, what, "default") is allowed


def may(cluster: Rig, account: str, verb: str, what: str, namespace: str) -> bool:
    """Whether a service account may; what: resource.group/subresource:name."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": account,
            "groups": ["system:authenticated"],
            "resourceAttributes": _attributes(verb, what) | {"namespace": namespace},
        },
    }
    answer = json.loads(cluster.kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(review)))
    allowed: bool = answer["status"]["allowed"]
    return allowed


def _attributes(verb: str, what: str) -> dict[str, str]:
    rest, _, name = what.partition(":")
    resource, _, subresource = rest.partition("/")
    resource, _, group = resource.partition(".")
    return {"verb": verb, "resource": resource, "group": group, "subresource": subresource, "name": name}


def template(**spec: Any) -> dict[str, Any]:
    return {"roles": {"policy": {"podTemplate": {"spec": spec}}}}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (template(hostNetwork=True), "spec.roles"),
        (template(serviceAccountName="admin"), "spec.roles"),
        (template(volumes=[{"name": "host", "hostPath": {"path": "/"}}]), "spec.roles"),
        (template(containers=[{"name": "side", "image": "x"}]), "spec.roles"),
        (template(containers=[{"name": "trainer", "securityContext": {"privileged": True}}]), "spec.roles"),
        (template(containers=[{"name": "trainer", "command": ["sh"]}]), "spec.roles"),
        ({"image": "attacker.example/any:latest"}, "spec.image"),
        ({"credentials": [{"secretName": "db"}]}, "spec.credentials"),
    ],
)
def test_what_no_job_may_ask_for_is_refused_where_it_is_made(
    spec: dict[str, Any], field: str, place: Place, narrow: None
) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        place.create_job("greedy", **spec)
    assert field in error.value.stderr
    assert "the platform lets no job" in error.value.stderr


def test_what_the_policy_lets_is_made_and_may_always_be_suspended(place: Place, narrow: None) -> None:
    modest = template(
        affinity={"podAntiAffinity": {}},
        volumes=[{"name": "scratch", "emptyDir": {}}],
        containers=[{"name": "trainer", "env": [{"name": "A", "value": "1"}]}],
    )
    place.create_job(
        "modest", image="registry.example/team/trainer:1", credentials=[{"secretName": "hf-token"}], **modest
    )
    place.kubectl("patch", "aj", "modest", "--type=merge", "-p", '{"spec": {"suspend": true}}')


@pytest.fixture(scope="module")
def narrow(cluster: Rig, objects: list[dict[str, Any]]) -> Iterator[None]:
    """A policy that names images and Secrets."""
    settings = ("platform.policy.images={registry.example/team/*}", "platform.policy.secrets={hf-*}")
    narrowed = [found for found in render(cluster, *settings) if found["kind"] == "ValidatingAdmissionPolicy"]
    cluster.apply(*narrowed)
    eventually(lambda: _refuses(cluster, "attacker.example/x"), "the policy to hold")
    yield
    cluster.apply(*(found for found in objects if found["kind"] == "ValidatingAdmissionPolicy"))


def _refuses(cluster: Rig, image: str) -> bool:
    job = JOB | {"metadata": {"name": "probe"}, "spec": JOB["spec"] | {"image": image}}  # type: ignore[operator]
    try:
        cluster.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(job))
    except subprocess.CalledProcessError as error:
        return "the platform lets no job" in error.stderr
    return False


def test_whoever_may_edit_a_namespace_may_edit_its_jobs(cluster: Rig, objects: list[dict[str, Any]]) -> None:
    def verbs(role: str) -> set[str]:
        rules = cluster.get("clusterrole", role)["rules"]
        return {verb for rule in rules if "alignmentjobs" in rule.get("resources", ()) for verb in rule["verbs"]}

    eventually(lambda: verbs("view") == {"get", "list", "watch"}, "the role view")
    eventually(lambda: {"create", "delete"} <= verbs("edit"), "the role edit")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("platform.pools.spto.noticeSeconds=30", "spto"),
        ("platform.pools.spot.noticeSeconds=2", "minimum"),
        ("replica=2", "replica"),
        ("platform.pools.onDemand.gpu.product=H100", "memoryGib"),
        ("platform.storage.accessMode=Sometimes", "accessMode"),
        ("platform.gang=coscheduling", "gang"),
        ("watchNamespaces={Team_A}", "watchNamespaces"),
    ],
)
def test_a_typo_in_the_values_is_refused(setting: str, words: str, cluster: Rig) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        render(cluster, setting)
    assert words in error.value.stderr


def test_the_crd_is_upgraded_with_the_chart_and_stays_without_it(cluster: Rig, objects: list[dict[str, Any]]) -> None:
    (crd,) = (found for found in objects if found["kind"] == "CustomResourceDefinition")
    assert crd["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    stored = cluster.get("crd", "alignmentjobs.alignment.run")
    assert "alignment" in stored["metadata"]["name"]
    assert stored["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
