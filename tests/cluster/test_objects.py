"""What the apiserver refuses, what somebody changes and what an attempt leaves behind, on a real control plane."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.operating import CLAIM, FAILED, PREPARED, Operator, Place, eventually, operating
from tests.rig.cluster import Rig

from alignment_operator.names import short_hash

pytestmark = pytest.mark.cluster
_numbers = count(1)


@pytest.fixture
def place(cluster: Rig) -> Iterator[Place]:
    made = Place(cluster, f"objects-{next(_numbers)}")
    cluster.kubectl("create", "namespace", made.namespace)
    made.create(CLAIM)
    yield made
    cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


def limit(place: Place, **hard: str) -> None:
    """A quota that the namespace has used up."""
    place.create(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "full"},
            "spec": {"hard": {name.replace("_", "/"): value for name, value in hard.items()}},
        }
    )
    eventually(lambda: place.items("resourcequota")[0].get("status", {}).get("used"), "the quota to be counted")


def objects_created(place: Place) -> dict[str, Any]:
    return place.condition("ObjectsCreated")


def test_a_full_quota_of_volumes_stops_nothing_of_a_job_that_has_its_volumes(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path) as operator:
        place.create_job()
        place.run("prepare")
        place.run("reference")
        limit(place, persistentvolumeclaims="3", count_secrets="1", count_configmaps="2")
        operator.kill(signal.SIGTERM)
        operator.start()  # it knows nothing of what it has made
        place.kubectl("delete", "pod", place.pod("reference")["metadata"]["name"], "--grace-period=0", "--force")
        place.pod("reference", life=2)
        place.kubectl("delete", "resourcequota", "full")
        limit(place, persistentvolumeclaims="0")
        place.end("prepare", PREPARED)
        place.pod("policy")
        eventually(lambda: not place.pods("reference"), "the reference server to give its node back")
        place.kubectl("patch", "aj", "dpo", "--type=merge", "-p", '{"spec": {"suspend": true}}')
        eventually(lambda: not place.pods("policy"), "the policy to go")


def test_a_refusal_stands_in_a_condition_until_it_is_over(place: Place, tmp_path: Path) -> None:
    limit(place, pods="0")
    with operating(place, tmp_path):
        place.create_job()
        said = eventually(lambda: objects_created(place), "a word")
        assert (said["status"], said["reason"]) == ("False", "QuotaExceeded")
        assert "Pod dpo-prepare-0-1-" in said["message"]
        assert "exceeded quota: full, requested: pods=1, used: pods=0, limited: pods=0" in said["message"]
        eventually(
            lambda: "exceeded quota" in place.kubectl("get", "events", "--field-selector", "reason=QuotaExceeded"),
            "an Event",
        )
        place.kubectl("delete", "resourcequota", "full")
        place.pod("prepare")
        eventually(lambda: objects_created(place)["status"] == "True", "the end of it to be said")


def test_what_a_webhook_or_policy_denies_is_said_in_its_words(place: Place, tmp_path: Path) -> None:
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": place.namespace},
        "spec": {
            "matchConstraints": {
                "resourceRules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["services"]}
                ]
            },
            "validations": [{"expression": "false", "message": "Services are made by hand here"}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": place.namespace},
        "spec": {
            "policyName": place.namespace,
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": place.namespace}}},
        },
    }
    place.rig.apply(policy, binding)
    try:
        eventually(lambda: is_denied(place), "the policy to hold")
        with operating(place, tmp_path):
            place.create_job()
            said = eventually(lambda: objects_created(place), "a word")
            assert "Services are made by hand here" in said["message"]
            assert place.names("pods") == {"dpo-prepare-0-1", "dpo-reference-0-1"}
            assert place.names("networkpolicies") == {"dpo-pods"}
    finally:
        place.rig.kubectl("delete", "validatingadmissionpolicybinding,validatingadmissionpolicy", place.namespace)


def is_denied(place: Place) -> bool:
    try:
        place.kubectl("create", "service", "clusterip", "probe", "--tcp=80", "--dry-run=server")
    except Exception as error:
        return "by hand" in str(getattr(error, "stderr", ""))
    return False


def test_an_object_that_is_not_the_jobs_is_said_and_not_used(place: Place, tmp_path: Path) -> None:
    place.create_job()  # no operator yet: its UID is known, and with it the names that it will use
    (job,) = place.items("aj")
    name = f"dpo-reference-{short_hash(job['metadata']['uid'])}"
    place.kubectl("create", "service", "clusterip", name, "--tcp=8000")
    before = service(place, name)
    with operating(place, tmp_path):
        said = eventually(lambda: objects_created(place), "a word")
        assert (said["status"], said["reason"]) == ("False", "NotOurs")
        assert f"Service {name}: an object of this name exists and is not this job's" in said["message"]
        assert place.items("pods") == []
        assert service(place, name) == before
        place.kubectl("delete", "service", name)
        place.pod("prepare")


def service(place: Place, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(place.kubectl("get", "service", name, "-o", "json"))
    return found


def test_what_somebody_changes_is_brought_back(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path) as operator:
        place.create_job()
        place.pod("reference")
        (made,) = [service for service in place.items("services") if "reference" in service["metadata"]["name"]]
        name = made["metadata"]["name"]
        patch = {"spec": {"selector": {"alignment.run/role": "evaluator"}}, "metadata": {"labels": {"team": "a"}}}
        place.kubectl("patch", "service", name, "--type=merge", "-p", json.dumps(patch))
        place.kubectl("delete", "networkpolicy", "--all")
        operator.kill(signal.SIGTERM)
        operator.start()  # it looks at everything anew, as it does every five minutes
        eventually(lambda: service(place, name)["spec"]["selector"] == made["spec"]["selector"], "the selector")
        assert service(place, name)["metadata"]["labels"]["team"] == "a"  # what is not ours to say stays
        eventually(lambda: place.names("networkpolicies") == {"dpo-pods"}, "the policy")


def test_a_change_of_the_platform_reaches_jobs_that_run(place: Place, tmp_path: Path) -> None:
    def configure(*namespaces: str) -> None:
        peers = [{"namespaceSelector": {"matchLabels": {"name": name}}} for name in namespaces]
        config = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "platform"},
            "data": {"platform.yaml": json.dumps({"image": "trainer:1", "ingressFrom": peers})},
        }
        place.kubectl("apply", "-f", "-", stdin=json.dumps(config))

    def let_in() -> str:
        return json.dumps([policy["spec"]["ingress"] for policy in place.items("networkpolicies")])

    configure("operator")
    operator = Operator(place, tmp_path)
    operator.start(platform=f"configmap://{place.namespace}/platform")
    place.create_job()
    place.pod("prepare")
    configure("operator", "scraper")
    eventually(lambda: "scraper" in let_in(), "the scraper to be let in")
    configure("operator")
    eventually(lambda: "scraper" not in let_in(), "the scraper to be kept out again")
    operator.kill(signal.SIGTERM)


def test_what_an_attempt_had_of_its_own_goes_with_it(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        place.create_job(budgets={"failures": 10})
        place.play_to_training()
        for life in (1, 2):
            place.end("policy", FAILED, life)
            place.run("policy", life + 1)
        # The pod of attempt 2 stays for its logs, and with it what it mounts.
        eventually(lambda: place.names("configmaps") == {"kube-root", "dpo-spec-2", "dpo-spec-3"}, "the oldest to go")
        name = place.pod("policy", 2)["metadata"]["name"]
        place.kubectl("delete", "pod", name, "--grace-period=0", "--force")
        eventually(lambda: place.names("configmaps") == {"kube-root", "dpo-spec-3"}, "the old specs to go")


def test_a_job_born_suspended_makes_nothing_until_it_is_told_to(place: Place, tmp_path: Path) -> None:
    with operating(place, tmp_path):
        place.create_job(suspend=True)
        eventually(lambda: place.status().get("phase") == "Suspended", "the phase")
        assert place.names("pvc") == {""}
        assert not place.items("secrets") + place.items("services") + place.items("networkpolicies")
        place.kubectl("patch", "aj", "dpo", "--type=merge", "-p", '{"spec": {"suspend": false}}')
        place.pod("prepare")
