"""A pod's JSON as planning sees it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from pydantic import ValidationError

from alignment_api.context import Outcome
from alignment_api.job import JOB_LABEL
from alignment_api.roles import StageName
from alignment_operator.kube.client import Manifest
from alignment_operator.names import (
    CONTAINER,
    INDEX_LABEL,
    LIFE_LABEL,
    READY_GATE,
    ROLE_LABEL,
    STAGE_LABEL,
    UID_LABEL,
)
from alignment_operator.plan.types import JobKey, PodView

NODE_REASONS = frozenset(
    {
        "Evicted",  # node pressure, or an eviction by a kubelet that is too old to say DisruptionTarget
        "Preempting",  # by the kubelet, for a critical pod
        "Shutdown",
        "NodeShutdown",
        "Terminated",  # by a node that shuts down gracefully
        "NodeLost",
        "NodeAffinity",  # refused by the kubelet on arrival: the node has changed since it was chosen
        "UnexpectedAdmissionError",
        "PreemptionByScheduler",
    }
)
REFUSED_ON_ARRIVAL = "OutOf"
"""OutOfcpu, OutOfmemory, OutOfnvidia.com/gpu: another pod was faster."""
OWN_LIMIT = ("exceeds the total limit", "exceeds the limit", "exceeded its local ephemeral storage limit")
"""An eviction for the pod's own appetite says so, and is no disruption."""
STARTING = frozenset({"ContainerCreating", "PodInitializing"})
"""Waiting reasons that only say that all is well."""
MESSAGE_CHARACTERS = 1000
_OUR_LABELS = {JOB_LABEL, UID_LABEL, ROLE_LABEL, INDEX_LABEL, LIFE_LABEL, STAGE_LABEL}


@dataclass(frozen=True)
class SeenPod:
    """A pod of a job, with what the runtime needs besides the plan's view."""

    view: PodView
    key: JobKey
    owner_uid: str
    """UID of the job that made it: a re-created job of the same name does not take over the pods of the old one."""
    node: str
    """Empty before it is scheduled."""
    address: str
    """Its IP; empty before it has one."""
    leans_on: frozenset[str] = frozenset()
    """What it mounts, and its PodGroup, as `Kind name`."""


def see_pod(pod: Manifest) -> SeenPod | None:
    """The pod of a job, from its JSON; None for one whose labels are not those we give."""
    metadata, labels = pod["metadata"], pod["metadata"].get("labels", {})
    if not labels.keys() >= _OUR_LABELS or not (labels[INDEX_LABEL] + labels[LIFE_LABEL]).isdecimal():
        return None
    return SeenPod(
        view=_view(pod, labels),
        key=JobKey(metadata["namespace"], labels[JOB_LABEL]),
        owner_uid=labels[UID_LABEL],
        node=pod["spec"].get("nodeName", ""),
        address=pod.get("status", {}).get("podIP", ""),
        leans_on=mounted(pod) | _group(pod),
    )


_MOUNTED = (
    ("ConfigMap", "configMap", "name"),
    ("Secret", "secret", "secretName"),
    ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
)
"""Kind, source of a volume, and where it names an object of the kind."""


def mounted(pod: Manifest) -> frozenset[str]:
    """What the pod's volumes are made of, as `Kind name`."""
    return frozenset(
        f"{kind} {volume[source][key]}"
        for volume in pod["spec"].get("volumes", ())
        for kind, source, key in _MOUNTED
        if key in volume.get(source, {})
    )


def _group(pod: Manifest) -> frozenset[str]:
    name = pod["spec"].get("schedulingGroup", {}).get("podGroupName")
    return frozenset() if name is None else frozenset({f"PodGroup {name}"})


def _view(pod: Manifest, labels: Mapping[str, str]) -> PodView:
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    ended = _terminated(status)
    reason, message = _why(status, ended)
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        role=labels[ROLE_LABEL],
        index=int(labels[INDEX_LABEL]),
        life=int(labels[LIFE_LABEL]),
        version=metadata.get("resourceVersion"),
        stage=cast(StageName, labels[STAGE_LABEL]),
        phase=_phase(status),
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        ready=_condition(status, "Ready").get("status") == "True",
        gated=any(gate["name"] == READY_GATE for gate in spec.get("schedulingGates", ())),
        gone_by=_time(metadata.get("deletionTimestamp")),  # the apiserver has added the grace period
        disrupted=_disrupted(status),
        exit_code=ended.get("exitCode"),
        outcome=_outcome(ended),
        reason=reason,
        message=message,
    )


def _phase(status: Mapping[str, Any]) -> Any:
    # "Unknown" is obsolete: the node speaks for itself (node_lost). A pod just created has no status yet.
    phase = status.get("phase", "Pending")
    return "Running" if phase == "Unknown" else phase


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((c for c in status.get("conditions", ()) if c["type"] == kind), {})


def _terminated(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """How our container ended; empty while it has not."""
    for container in status.get("containerStatuses", ()):
        if container["name"] == CONTAINER:
            return container.get("state", {}).get("terminated") or {}
    return {}


def _disrupted(status: Mapping[str, Any]) -> bool:
    if _condition(status, "DisruptionTarget").get("status") == "True":
        return True
    reason, message = status.get("reason", ""), status.get("message", "")
    if reason == "Evicted" and any(words in message for words in OWN_LIMIT):
        return False
    return reason in NODE_REASONS or reason.startswith(REFUSED_ON_ARRIVAL)


def _outcome(ended: Mapping[str, Any]) -> Outcome | None:
    """The termination message, where it is an Outcome: a process that was killed leaves none, or half of one."""
    try:
        return Outcome.model_validate_json(ended.get("message", ""), strict=True, by_name=False)
    except ValidationError:
        return None


def _why(status: Mapping[str, Any], ended: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Why the pod ended or waits, as a word and as a sentence; the first place that says something."""
    for place in _reasons(status, ended):
        if place.get("reason"):
            return place["reason"], place.get("message", "")[:MESSAGE_CHARACTERS] or None
    return None, None


def _reasons(status: Mapping[str, Any], ended: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield status  # Evicted, OutOfcpu: the pod as a whole
    yield ended  # OOMKilled, Error
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting") or {}
        if waiting.get("reason") not in STARTING:
            yield waiting  # ImagePullBackOff, CreateContainerConfigError
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        yield scheduled  # Unschedulable, SchedulingGated
