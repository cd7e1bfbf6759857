"""Pods as kubelets and control planes of 1.37 write them, cut down to what matters."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from alignment_operator.kube.observe import SeenPod, Unreadable, see_pod
from alignment_operator.plan.types import JobKey

LABELS = {
    "alignment.run/job": "helpful-dpo",
    "alignment.run/uid": "4b9f7c1e-8d7e-4c39-9d4e-1d2b9f8f2f10",
    "alignment.run/role": "policy",
    "alignment.run/index": "0",
    "alignment.run/life": "2",
    "alignment.run/stage": "train",
}
RUNNING = {"running": {"startedAt": "2026-11-24T02:00:05Z"}}
READY = {"type": "Ready", "status": "True"}


def pod(*, metadata: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "helpful-dpo-policy-0-2-3jytb",
            "namespace": "team-a",
            "uid": "pod-uid",
            "labels": LABELS,
            "creationTimestamp": "2026-11-24T02:00:00Z",
            **(metadata or {}),
        },
        "spec": {"nodeName": "gpu-1", **(spec or {})},
        "status": {"phase": "Running", "podIP": "10.0.0.7", **status},
    }


def seen(manifest: dict[str, Any]) -> SeenPod:
    return see_pod(manifest)


def container(state: dict[str, Any], name: str = "trainer") -> dict[str, Any]:
    return {"name": name, "state": state}


def ended(exit_code: int, message: str | None = None, reason: str = "Error") -> dict[str, Any]:
    state = {"terminated": {"exitCode": exit_code, "reason": reason, **({"message": message} if message else {})}}
    return {"phase": "Succeeded" if exit_code == 0 else "Failed", "containerStatuses": [container(state)]}


def test_the_image_is_that_of_our_container_as_named_and_as_run() -> None:
    named = [{"name": "istio-proxy", "image": "proxy:1"}, {"name": "trainer", "image": "registry.example/trainer:1"}]
    runs = [container(RUNNING, "istio-proxy") | {"imageID": "proxy@sha256:00"}, container(RUNNING) | {"imageID": "id"}]
    view = seen(pod(spec={"containers": named}, containerStatuses=runs)).view
    assert (view.image, view.image_id) == ("registry.example/trainer:1", "id")
    waiting = seen(pod(spec={"containers": named})).view
    assert (waiting.image, waiting.image_id) == ("registry.example/trainer:1", "")


def test_a_running_pod_is_known_by_its_labels() -> None:
    found = seen(pod(conditions=[READY], containerStatuses=[container(RUNNING)]))
    assert (found.key, found.owner_uid) == (JobKey("team-a", "helpful-dpo"), LABELS["alignment.run/uid"])
    assert (found.node, found.address) == ("gpu-1", "10.0.0.7")
    view = found.view
    assert (view.role, view.index, view.life, view.stage) == ("policy", 0, 2, "train")
    assert (view.phase, view.ready, view.gated, view.disrupted) == ("Running", True, False, False)
    assert view.created_at == datetime(2026, 11, 24, 2, 0, tzinfo=UTC)
    assert (view.exit_code, view.outcome, view.reason, view.gone_by) == (None, None, None, None)


def test_a_pod_without_a_status_yet_is_pending() -> None:
    manifest = pod()
    del manifest["status"]
    assert seen(manifest).view.phase == "Pending"


@pytest.mark.parametrize("label", LABELS)
def test_a_pod_without_one_of_our_labels_is_not_ours(label: str) -> None:
    without = {name: value for name, value in LABELS.items() if name != label}
    for labels in (without, without | {label: ""}):
        with pytest.raises(Unreadable, match=f"label {label} is missing or empty"):
            see_pod(pod(metadata={"labels": labels}))


@pytest.mark.parametrize(
    ("label", "value"),
    [
        ("index", "first"),
        ("index", "-1"),
        ("index", "\u00b2"),
        ("index", "1234567890"),
        ("life", "1.0"),
        ("life", "\u0663"),
        ("role", "mascot"),
        ("stage", "rehearse"),
    ],
)
def test_each_label_is_read_on_its_own(label: str, value: str) -> None:
    name = f"alignment.run/{label}"
    with pytest.raises(Unreadable, match=f"label {name} is `{re.escape(value)}`"):
        see_pod(pod(metadata={"labels": LABELS | {name: value}}))


def test_the_time_of_going_includes_the_grace_period_as_the_apiserver_writes_it() -> None:
    going = {"deletionTimestamp": "2026-11-24T02:10:30Z", "deletionGracePeriodSeconds": 30}
    assert seen(pod(metadata=going)).view.gone_by == datetime(2026, 11, 24, 2, 10, 30, tzinfo=UTC)


def test_only_our_own_gate_counts() -> None:
    ours = pod(spec={"schedulingGates": [{"name": "kueue.x-k8s.io/topology"}, {"name": "alignment.run/roles-ready"}]})
    theirs = pod(spec={"schedulingGates": [{"name": "kueue.x-k8s.io/topology"}]})
    assert seen(ours).view.gated
    assert not seen(theirs).view.gated


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]},
        {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]},
        {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
        {
            "phase": "Failed",
            "reason": "Terminated",
            "message": "Pod was terminated in response to imminent node shutdown.",
        },
        {"phase": "Failed", "reason": "OutOfcpu", "message": "Node didn't have enough resource: cpu"},
        {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no healthy devices present"},
        {"phase": "Failed", "reason": "AReasonOfNextYear", "message": "the kubelet's own affair"},
        ended(255, reason="Unknown"),
        ended(137, reason="ContainerStatusUnknown"),
    ],
)
def test_what_the_node_or_the_control_plane_did_is_a_disruption(status: dict[str, Any]) -> None:
    assert seen(pod(**status)).view.disrupted


@pytest.mark.parametrize(
    "status",
    [
        {"conditions": [{"type": "DisruptionTarget", "status": "False"}]},
        {
            "phase": "Failed",
            "reason": "Evicted",
            "message": 'Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". ',
        },
        {
            "phase": "Failed",
            "reason": "Evicted",
            "message": "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ",
        },
        {"phase": "Failed", "reason": "DeadlineExceeded"},
        ended(137, reason="OOMKilled"),
    ],
)
def test_what_the_pod_did_itself_is_no_disruption(status: dict[str, Any]) -> None:
    assert not seen(pod(**status)).view.disrupted


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("UnexpectedAdmissionError", "Allocate failed due to no healthy devices present; cannot allocate"),
        ("OutOfnvidia.com/gpu", "Pod was rejected: Node didn't have enough resource: nvidia.com/gpu"),
        ("NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed"),
        ("TopologyAffinityError", "Resources cannot be allocated with Topology locality"),
        ("SMTAlignmentError", "SMT Alignment Error"),
        ("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS"),
        ("InvalidNodeInfo", "Kubelet cannot get node info."),
        ("AppArmor", "Cannot enforce AppArmor: AppArmor is not enabled on the host"),
        ("NodeShutdown", "Pod was rejected as the node is shutting down."),
        ("Evicted", "The node had condition: [DiskPressure]. "),
    ],
)
def test_a_pod_that_its_node_turned_away_never_ran(reason: str, message: str) -> None:
    view = seen(pod(phase="Failed", reason=reason, message=message)).view
    assert (view.disrupted, view.rejected, view.node) == (True, True, "gpu-1")


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
        {"phase": "Failed", "reason": "Terminated", "message": "Pod was terminated in response to imminent shutdown."},
        {"phase": "Failed", "reason": "DeadlineExceeded"},
        {"reason": "UnexpectedAdmissionError", **ended(1)},
        {
            "phase": "Failed",
            "reason": "OutOfcpu",
            "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}],
        },
        ended(1),
        {},
    ],
)
def test_a_pod_that_ran_or_waits_was_not_turned_away(status: dict[str, Any]) -> None:
    assert not seen(pod(**status)).view.rejected


@pytest.mark.parametrize(
    ("phase", "beside", "exit_code", "expected"),
    [
        ("Running", RUNNING, 0, ("Succeeded", True)),
        ("Running", RUNNING, 1, ("Failed", True)),
        ("Failed", {"terminated": {"exitCode": 1, "reason": "Error"}}, 0, ("Succeeded", False)),
        ("Succeeded", {"terminated": {"exitCode": 0, "reason": "Completed"}}, 0, ("Succeeded", False)),
    ],
)
def test_the_end_of_our_container_is_the_pods_whatever_those_beside_it_do(
    phase: str, beside: dict[str, Any], exit_code: int, expected: tuple[str, bool]
) -> None:
    statuses = [container(beside, "istio-proxy"), *ended(exit_code)["containerStatuses"]]
    view = seen(pod(phase=phase, containerStatuses=statuses)).view
    assert ((view.phase, view.lingers), view.exit_code) == (expected, exit_code)


def test_a_container_beside_ours_that_ends_first_ends_nothing() -> None:
    statuses = [container({"terminated": {"exitCode": 1, "reason": "Error"}}, "proxy"), container(RUNNING)]
    view = seen(pod(containerStatuses=statuses)).view
    assert (view.phase, view.lingers, view.ended) == ("Running", False, False)


def test_an_outcome_of_a_newer_trainer_is_read_as_far_as_it_is_known() -> None:
    data = {"format": "preferences", "rows": 9, "evaluationRows": 1, "fingerprint": "d", "languages": ["en"]}
    view = seen(pod(**ended(0, json.dumps({"result": "succeeded", "data": data, "cost": {"usd": 1}})))).view
    assert view.outcome is not None
    assert view.outcome.data is not None
    assert (view.outcome.result, view.outcome.data.rows) == ("succeeded", 9)


def test_an_outcome_is_read_from_the_termination_message() -> None:
    outcome = {
        "result": "failed",
        "failure": {"reason": "InvalidData", "message": "row 7", "retryable": False},
        "step": 3,
    }
    view = seen(pod(**ended(1, json.dumps(outcome)))).view
    assert (view.phase, view.exit_code) == ("Failed", 1)
    assert view.outcome is not None
    assert view.outcome.failure is not None
    assert (view.outcome.failure.reason, view.outcome.step) == ("InvalidData", 3)
    assert view.message is None  # an outcome is for programs


@pytest.mark.parametrize(
    "message",
    [
        None,
        "",
        "Traceback (most recent call last): ...",
        '{"result": "succ',
        "[]",
        '{"result": "triumphant"}',
        '{"result": "odd"}',
        '{"result": "failed", "step": "3"}',
    ],
)
def test_a_message_that_is_no_outcome_is_none(message: str | None) -> None:
    view = seen(pod(**ended(1, message))).view
    assert (view.outcome, view.exit_code, view.reason) == (None, 1, "Error")


def test_the_exit_of_another_container_is_not_ours() -> None:
    statuses = [container({"terminated": {"exitCode": 0, "reason": "Completed"}}, "proxy"), container(RUNNING)]
    assert seen(pod(containerStatuses=statuses)).view.exit_code is None


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"phase": "Pending", "containerStatuses": [container({"waiting": {"reason": reason, "message": message}})]}


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
}


@pytest.mark.parametrize(
    ("status", "reason", "words"),
    [
        (ended(137, reason="OOMKilled"), "OOMKilled", None),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "Evicted", "low on memory"),
        (waiting("ImagePullBackOff", 'Back-off pulling image "x"'), "ImagePullBackOff", 'Back-off pulling image "x"'),
        (
            waiting("CreateContainerConfigError", 'secret "hf" not found'),
            "CreateContainerConfigError",
            'secret "hf" not found',
        ),
        (waiting("ContainerCreating"), None, None),
        ({"phase": "Pending", "conditions": [UNSCHEDULABLE]}, "Unschedulable", UNSCHEDULABLE["message"]),
        ({"phase": "Pending", "conditions": [UNSCHEDULABLE | {"status": "True"}]}, None, None),
    ],
)
def test_why_a_pod_ended_or_waits(status: dict[str, Any], reason: str | None, words: str | None) -> None:
    view = seen(pod(**status)).view
    assert (view.reason, view.message) == (reason, words)
