"""A pod's JSON as planning sees it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast, get_args

from pydantic import ValidationError

from alignment_api.contract.context import Outcome
from alignment_api.contract.job import JOB_LABEL
from alignment_api.contract.roles import ROLES, StageName
from alignment_operator.kube.client import Manifest
from alignment_operator.names import (
    AVOIDED_NODES,
    CONTAINER,
    INDEX_LABEL,
    LIFE_LABEL,
    READY_GATE,
    ROLE_LABEL,
    STAGE_LABEL,
    UID_LABEL,
)
from alignment_operator.plan.types import JobKey, PodView

OWN_ENDS = frozenset({"DeadlineExceeded"})
"""Pod-level reasons that are the pod's own doing (activeDeadlineSeconds of a podTemplate). Every other comes from its
node: kubelets invent new ones, and none of them is an error of the program."""
OWN_LIMIT = ("exceeds the total limit", "exceeds the limit", "exceeded its local ephemeral storage limit")
"""An eviction for the pod's own appetite says so, and is no disruption."""
RAN = frozenset({"Evicted", "Terminated", "Shutdown", "Preempting", "NodeLost"})
"""Reasons for which a node ends pods that run; every other it gives to pods that it turns away."""
TURNED_AWAY = ("Pod was rejected", "The node had condition")
"""How a message begins where a node gives such a reason to a pod that it turns away all the same."""
LOST_BY_NODE = frozenset({"Unknown", "ContainerStatusUnknown"})
"""Reasons of a container's end that a kubelet gives to what it finds gone, after a reboot: nobody saw it end."""
STARTING = frozenset({"ContainerCreating", "PodInitializing"})
"""Waiting reasons that only say that all is well."""
MESSAGE_CHARACTERS = 1000
_NUMBER = re.compile("[0-9]{1,9}")


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


class Unreadable(ValueError):
    """An object that is not what its labels claim. Anybody may write labels: it is left out, and harms nobody else."""


def see_pod(pod: Manifest) -> SeenPod:
    """The pod of a job, from its JSON. Raises Unreadable for one whose labels are not such as we give."""
    metadata = pod["metadata"]
    labels = metadata.get("labels") or {}
    return SeenPod(
        view=_view(pod, labels),
        key=JobKey(metadata["namespace"], _label(labels, JOB_LABEL)),
        owner_uid=_label(labels, UID_LABEL),
        node=pod["spec"].get("nodeName", ""),
        address=pod.get("status", {}).get("podIP", ""),
        leans_on=mounted(pod) | _group(pod),
    )


def _label(labels: Mapping[str, str], name: str) -> str:
    value = labels.get(name)
    if not value:
        raise Unreadable(f"label {name} is missing or empty; every pod of a job has it: take {JOB_LABEL} off others")
    return value


def _number(labels: Mapping[str, str], name: str) -> int:
    value = _label(labels, name)
    if not _NUMBER.fullmatch(value):
        raise Unreadable(f"label {name} is `{value}`, which is no number of up to nine digits")
    return int(value)


def _one_of(labels: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    value = _label(labels, name)
    if value not in known:
        raise Unreadable(f"label {name} is `{value}`, which is none of {', '.join(known)}")
    return value


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
    outcome = _outcome(ended)
    reason, message = _why(status, ended if outcome is None else {**ended, "message": ""})
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        role=_one_of(labels, ROLE_LABEL, tuple(ROLES)),
        index=_number(labels, INDEX_LABEL),
        life=_number(labels, LIFE_LABEL),
        stage=cast(StageName, _one_of(labels, STAGE_LABEL, get_args(StageName))),
        phase=_phase(status, ended),
        version=metadata.get("resourceVersion"),
        created_at=datetime.fromisoformat(metadata["creationTimestamp"]),
        node=spec.get("nodeName", ""),
        avoids=tuple(filter(None, (metadata.get("annotations") or {}).get(AVOIDED_NODES, "").split(","))),
        ready=_condition(status, "Ready").get("status") == "True",
        gated=any(gate["name"] == READY_GATE for gate in spec.get("schedulingGates", ())),
        gone_by=_time(metadata.get("deletionTimestamp")),  # the apiserver has added the grace period
        lingers=_lingers(status, ended),
        disrupted=_disrupted(status, ended),
        rejected=_rejected(status),
        image=_own(spec.get("containers", ())).get("image", ""),
        image_id=_own(status.get("containerStatuses", ())).get("imageID", ""),
        exit_code=ended.get("exitCode"),
        outcome=outcome,
        reason=reason,
        message=message,
    )


def _phase(status: Mapping[str, Any], ended: Mapping[str, Any]) -> Any:
    """That of our container once it has ended: others beside it keep the pod running, or fail it afterwards."""
    if ended:
        return "Succeeded" if ended.get("exitCode") == 0 else "Failed"
    # "Unknown" is obsolete: the node speaks for itself (node_lost). A pod just created has no status yet.
    phase = status.get("phase", "Pending")
    return "Running" if phase == "Unknown" else phase


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((c for c in status.get("conditions", ()) if c["type"] == kind), {})


def _terminated(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """How our container ended; empty while it has not."""
    return _own(status.get("containerStatuses", ())).get("state", {}).get("terminated") or {}


def _own(containers: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What is said of our container; empty where nothing is."""
    return next((container for container in containers if container["name"] == CONTAINER), {})


def _lingers(status: Mapping[str, Any], ended: Mapping[str, Any]) -> bool:
    """Whether containers beside ours run on. Native sidecars do not count: the kubelet ends those."""
    others = (c for c in status.get("containerStatuses", ()) if c["name"] != CONTAINER)
    over = status.get("phase") in ("Succeeded", "Failed")
    return bool(ended) and not over and any("terminated" not in c.get("state", {}) for c in others)


def _disrupted(status: Mapping[str, Any], ended: Mapping[str, Any]) -> bool:
    if _condition(status, "DisruptionTarget").get("status") == "True" or ended.get("reason") in LOST_BY_NODE:
        return True
    return _by_its_node(status)


def _by_its_node(status: Mapping[str, Any]) -> bool:
    """Whether the pod as a whole has a reason that its node gave it."""
    reason, message = status.get("reason", ""), status.get("message", "")
    own = reason in OWN_ENDS or (reason == "Evicted" and any(words in message for words in OWN_LIMIT))
    return bool(reason) and not own


def _rejected(status: Mapping[str, Any]) -> bool:
    """Whether the node has turned the pod away on arrival, so that nothing of it ever ran."""
    evicted = _condition(status, "DisruptionTarget").get("status") == "True"
    if status.get("phase") != "Failed" or evicted or not _by_its_node(status):
        return False
    started = any(c.get("state", {}).keys() & {"running", "terminated"} for c in status.get("containerStatuses", ()))
    turned_away = status.get("message", "").startswith(TURNED_AWAY)
    return not started and (status["reason"] not in RAN or turned_away)


def _outcome(ended: Mapping[str, Any]) -> Outcome | None:
    """The termination message, where it is an Outcome: a process that was killed leaves none, or half of one."""
    try:
        return Outcome.model_validate_json(ended.get("message", ""), strict=True, by_name=False, extra="ignore")
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
