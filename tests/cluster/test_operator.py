"""The operator on a real control plane. Its pods never start: the tests say what their kubelet would."""

import json
import signal
import subprocess
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from tests.cluster.operating import (
    CLAIM,
    FAILED,
    JOB,
    PREPARED,
    SCORED,
    TRAINED,
    Operator,
    Place,
    eventually,
    operating,
)
from tests.rig.cluster import Rig

from alignment_api.contract.algorithms import Dpo
from alignment_api.crd import custom_resource_definition

pytestmark = pytest.mark.cluster
_numbers = count(1)


@pytest.fixture
def place(cluster: Rig) -> Iterator[Place]:
    made = Place(cluster, f"operator-{next(_numbers)}")
    cluster.kubectl("create", "namespace", made.namespace)
    made.create(CLAIM)
    yield made
    cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


def test_a_job_makes_what_its_first_stage_needs(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        place.create_job()
        eventually(lambda: len(place.items("pods")) == 2, "two pods")
        assert place.names("pods") == {"dpo-prepare-0-1", "dpo-reference-0-1"}
        gates = {
            pod["metadata"]["labels"]["alignment.run/role"]: pod["spec"].get("schedulingGates")
            for pod in place.items("pods")
        }
        assert gates == {"prepare": None, "reference": [{"name": "alignment.run/roles-ready"}]}
        assert {"dpo-spec-0"} <= place.names("configmaps")
        assert place.names("services") == {"dpo-prepare", "dpo-reference"}
        assert place.names("secrets") == {"dpo-token"}
        assert place.names("networkpolicies") == {"dpo-pods"}
        assert place.names("pvc") == {"", "dpo-storage", "dpo-output"}
        assert place.condition("Admitted")["status"] == "True"


def test_a_job_goes_through_its_stages_and_leaves_what_the_user_owns(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path) as operator:
        place.create_job()
        place.run("prepare")
        eventually(lambda: not place.pod("reference")["spec"].get("schedulingGates"), "the gate to open")
        place.run("reference")
        place.end("prepare", PREPARED)
        eventually(lambda: not place.pods("reference"), "the reference server to go")
        place.run("policy")
        assert eventually(lambda: place.status()["data"], "what prepare found")["rows"] == 400
        place.end("policy", TRAINED)
        place.run("evaluator")
        place.end("evaluator", SCORED)
        eventually(lambda: place.status()["phase"] == "Complete", "the end")
        eventually(
            lambda: not place.names("secrets") | place.names("services") | place.names("networkpolicies"), "tidiness"
        )
        assert place.names("configmaps") == {"kube-root"}  # kube-root-ca.crt
        assert place.names("pvc") == {"", "dpo-storage", "dpo-output"}
        assert place.status()["evaluation"]["after"]["accuracy"]["count"] == 40
        assert operator.metric(f'alignment_operator_jobs{{namespace="{place.namespace}",phase="Complete"}}') == 1


def test_a_deleted_job_takes_everything_but_its_output(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        place.create_job()
        place.pod("reference")
        place.kubectl("delete", "aj", "dpo")
        eventually(lambda: not place.items("pods"), "the pods to go")
        eventually(lambda: place.names("pvc") == {"", "dpo-output"}, "the storage to go")
        eventually(
            lambda: not place.names("secrets") | place.names("services") | place.names("networkpolicies"), "the rest"
        )


def test_a_job_applied_again_meets_no_leftovers(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        place.create_job()
        first = place.pod("prepare")["metadata"]["name"]
        place.kubectl("delete", "aj", "dpo")
        place.create_job()
        eventually(lambda: {p["metadata"]["name"] for p in place.pods("prepare")} - {first}, "a pod of the new job")
        eventually(lambda: len(place.pods("prepare")) == 1, "the old pod to go")
        assert place.status()["phase"] == "Pending"


def test_an_exit_seen_by_two_operators_is_counted_once(place: Place, tmp_path: Path) -> None:
    # Two leases, so that both act: what must never happen, and must not count double if it does.
    with operating(place, tmp_path), operating(place, tmp_path, lease="another"):
        place.create_job()
        place.play_to_training()
        place.end("policy", FAILED)
        place.run("policy", life=2)
        eventually(lambda: place.condition("Training").get("status") == "True", "attempt 2 to train")
        assert place.role("policy")["failures"] == 1
        assert place.status()["attempt"] == 2
        assert place.names("pods") == {"dpo-policy-0-1", "dpo-policy-0-2"}


def test_an_exit_before_a_sigkill_is_counted_once_after_it(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path) as operator:
        place.create_job()
        place.play_to_training()
        for life in (1, 2):
            place.end("policy", FAILED, life)
            operator.kill()  # before, while or after it counts
            operator.start()
            place.run("policy", life + 1)
        eventually(lambda: place.role("policy")["ready"] == 1, "attempt 3 to be ready")
        assert place.role("policy")["failures"] == 2
        assert place.status()["attempt"] == 3


def test_a_node_that_turns_a_pod_away_is_kept_away_from(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        place.create_job(budgets={"failures": 0, "disruptions": 0})
        place.run("prepare")
        place.end("prepare", PREPARED)
        place.reject("policy", "bad-node")
        affinity = place.pod("policy", life=2)["spec"]["affinity"]["nodeAffinity"]
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert term["matchFields"] == [{"key": "metadata.name", "operator": "NotIn", "values": ["bad-node"]}]
        (avoided,) = place.status()["avoidedNodes"]
        assert (avoided["name"], avoided["reason"]) == ("bad-node", "UnexpectedAdmissionError")
        assert (place.role("policy")["failures"], place.status()["phase"]) == (0, "Running")


def test_a_trainer_that_has_ended_has_ended_whatever_runs_on_beside_it(place: Place, tmp_path: Path) -> None:
    template = {"spec": {"containers": [{"name": "istio-proxy", "image": "proxy"}]}}
    pools = {"onDemand": {"nodeSelector": {"pool": "onDemand"}, "podTemplate": template}}
    (tmp_path / "platform.yaml").write_text(json.dumps({"pools": pools, "storage": {"accessMode": "ReadWriteMany"}}))
    with operating(place, tmp_path):
        place.create_job()
        place.play_to_training()
        place.end_beside("policy", FAILED)
        place.run("policy", life=2)
        place.end_beside("policy", TRAINED, life=2)
        place.pod("evaluator")
        eventually(lambda: not place.pods("policy"), "the pods that held their nodes to go")
        assert place.role("policy")["failures"] == 1


def test_ends_while_no_operator_runs_are_counted_when_one_does(place: Place, tmp_path: Path) -> None:
    operator = Operator(place, tmp_path)
    operator.start()
    place.create_job()
    place.play_to_training()
    eventually(lambda: place.role("policy")["ready"] == 1, "the policy to be ready")
    assert operator.kill(signal.SIGTERM) == 0
    place.kubectl("delete", "pod", place.pod("policy")["metadata"]["name"], "--grace-period=0", "--force")
    operator.start()
    place.run("policy", life=2)
    assert (place.role("policy")["disruptions"], place.role("policy")["failures"]) == (1, 0)
    assert operator.kill(signal.SIGTERM) == 0


def test_a_standby_is_healthy_and_takes_over(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path) as first:
        eventually(lambda: first.metric("alignment_operator_leader") == 1, "the first to lead")
        with operating(place, tmp_path) as second:
            eventually(second.is_healthy, "the standby to be healthy")
            assert second.metric("alignment_operator_leader") == 0
            assert first.kill(signal.SIGTERM) == 0
            place.create_job()
            place.pod("prepare")
            assert second.metric("alignment_operator_leader") == 1


def test_an_operator_whose_lease_was_taken_ends(place: Place, tmp_path: Path) -> None:
    operator = Operator(place, tmp_path)
    operator.start()
    eventually(lambda: operator.metric("alignment_operator_leader") == 1, "it to lead")
    (lease,) = place.items("leases")
    thief = '{"spec": {"holderIdentity": "thief"}}'
    place.kubectl("patch", "lease", lease["metadata"]["name"], "--type=merge", "-p", thief)
    assert operator.process is not None
    assert operator.process.wait(timeout=300) == 1
    assert [row["message"] for row in operator.errors()] == ["another holds it: thief"]


def test_an_operator_does_not_start_on_a_platform_with_a_typo(place: Place, tmp_path: Path) -> None:
    (tmp_path / "platform.yaml").write_text("pools:\n  spto: {}\n")
    operator = Operator(place, tmp_path)
    operator.start()
    assert operator.process is not None
    assert operator.process.wait(timeout=300) == 1
    (error,) = operator.errors()
    assert "platform.yaml:2: pools.spto: unknown field. Did you mean `spot`" in error["message"]


def test_a_suspended_job_has_no_pods_and_goes_on(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        place.create_job()
        place.play_to_training()
        place.kubectl("patch", "aj", "dpo", "--type=merge", "-p", '{"spec": {"suspend": true}}')
        eventually(lambda: not place.pods("policy"), "the policy to go")
        eventually(lambda: place.status()["phase"] == "Suspended", "the phase")
        place.kubectl("patch", "aj", "dpo", "--type=merge", "-p", '{"spec": {"suspend": false}}')
        place.pod("policy", life=2)
        assert (place.role("policy")["disruptions"], place.role("policy")["failures"]) == (0, 0)


def test_a_job_without_its_claim_waits_and_says_so(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        place.create_job(data={"source": "pvc://nowhere/pairs.jsonl"})
        admitted = eventually(lambda: place.condition("Admitted"), "a word")
        assert admitted["status"] == "False"
        assert "spec.data.source: no claim `nowhere`" in admitted["message"]
        assert place.items("pods") == []
        eventually(lambda: "nowhere" in place.kubectl("get", "events", "--field-selector", "type=Warning"), "an Event")


def test_a_job_stored_before_the_contract_was_stricter_is_told_so(place: Place, tmp_path: Path) -> None:
    loose = custom_resource_definition()
    spec = loose["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["properties"]["algorithm"]["properties"]["dpo"]["properties"]["beta"] = {"type": "number"}
    place.rig.apply(loose)
    try:
        eventually(lambda: _is_admitted(place, beta=-0.5), "the looser schema")
    finally:
        place.rig.apply(custom_resource_definition())
    with operating(place, tmp_path):
        admitted = eventually(lambda: place.condition("Admitted"), "a word")
        assert (admitted["status"], admitted["reason"]) == ("False", "Refused")
        assert "spec.algorithm.dpo.beta: found `-0.5`" in admitted["message"]
        version = place.items("aj")[0]["metadata"]["resourceVersion"]
        place.create_job("other")
        place.pod("prepare")
        assert (
            next(j for j in place.items("aj") if j["metadata"]["name"] == "dpo")["metadata"]["resourceVersion"]
            == version
        )


def _is_admitted(place: Place, beta: float) -> bool:
    try:
        place.create_job(algorithm={"dpo": {"beta": beta}})
    except subprocess.CalledProcessError:
        return False
    return True


def test_a_pod_that_borrows_our_labels_disturbs_nobody(place: Place, tmp_path: Path) -> None:
    labels = dict.fromkeys(("uid", "role", "stage", "life", "index"), "no-number") | {"job": "dpo"}
    container = {"name": "c", "image": "i"}
    place.create(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "guest", "labels": {f"alignment.run/{key}": value for key, value in labels.items()}},
            "spec": {"containers": [container]},
        }
    )
    with operating(place, tmp_path):
        place.create_job()
        place.pod("prepare")
        assert "guest" in place.kubectl("get", "pods")


def test_changed_pools_are_used_without_a_restart(place: Place, tmp_path: Path) -> None:
    def configure(text: str) -> None:
        config = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "pools"},
            "data": {"platform.yaml": text},
        }
        place.kubectl("apply", "-f", "-", stdin=json.dumps(config))

    configure("image: trainer:1")
    operator = Operator(place, tmp_path)
    operator.start(platform=f"configmap://{place.namespace}/pools")
    place.create_job("before")
    eventually(lambda: place.pods("prepare"), "a pod")
    configure("imgae: trainer:2")
    eventually(lambda: operator.metric("alignment_operator_platform_errors_total") == 1, "the typo to be refused")
    configure("image: trainer:2")
    eventually(lambda: "platform changed" in operator.log.read_text(), "the change to be seen")
    place.create_job("after")

    def images() -> set[str]:
        return {pod["spec"]["containers"][0]["image"] for pod in place.pods("prepare")}

    eventually(lambda: images() == {"trainer:1", "trainer:2"}, "a pod of the new image")
    operator.kill(signal.SIGTERM)


def test_a_job_needs_no_finalizer_and_no_annotation(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        place.create_job()
        place.pod("prepare")
        (job,) = place.items("aj")
        assert job["metadata"].get("finalizers") is None
        assert job["metadata"].get("annotations") is None
        assert job["spec"]["algorithm"] == {"dpo": Dpo().model_dump(by_alias=True)}
        assert JOB["spec"]["algorithm"] == {"dpo": {}}  # type: ignore[index]
