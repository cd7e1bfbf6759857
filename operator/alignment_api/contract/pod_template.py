"""What a podTemplate may hold: a patch over a pod, whose fields are Kubernetes' own.

The apiserver drops a field that it does not know without a word, and a pod that cannot be built is nobody's to see: so
its shape is checked where a person reads the answer. What stands below a field that is free here is the apiserver's to
check; its words stand in the condition ObjectsCreated.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from alignment_api.contract.found import shown

FieldPath = tuple[str | int, ...]
Problem = tuple[FieldPath, str]
"""Where, and what was found and what to write instead."""


@dataclass(frozen=True)
class Plain:
    """A value without fields of its own; null removes it from the pod."""

    types: tuple[type, ...]
    words: str


@dataclass(frozen=True)
class Fields:
    """A mapping whose fields are known."""

    known: Mapping[str, Kind]


@dataclass(frozen=True)
class Texts:
    """A mapping from names to texts; null removes one."""


@dataclass(frozen=True)
class Entries:
    """A list. known: the fields of its entries; None: free. key: by which entries merge."""

    known: Mapping[str, Kind] | None = None
    key: str | None = None


Kind = Plain | Fields | Texts | Entries

_TEXT = Plain((str,), "a text")
_WHOLE = Plain((int,), "a whole number")
_SWITCH = Plain((bool,), "`true` or `false`, without quotes")
_FREE = Plain((dict,), "its fields, indented below it")
_LIST = "a list (`- ` before each item)"
_BELOW = "its fields, indented below it"


def _fields(text: str = "", whole: str = "", switch: str = "", free: str = "", lists: str = "") -> dict[str, Kind]:
    """Known fields by the kind of their values."""
    kinds: tuple[tuple[str, Kind], ...] = (
        (text, _TEXT),
        (whole, _WHOLE),
        (switch, _SWITCH),
        (free, _FREE),
        (lists, Entries()),
    )
    return {name: kind for names, kind in kinds for name in names.split()}


_VOLUME_SOURCES = (
    "awsElasticBlockStore azureDisk azureFile cephfs cinder configMap csi downwardAPI emptyDir ephemeral fc flexVolume "
    "flocker gcePersistentDisk gitRepo glusterfs hostPath image iscsi nfs persistentVolumeClaim photonPersistentDisk "
    "portworxVolume projected quobyte rbd scaleIO secret storageos vsphereVolume"
)
_CONTAINER: dict[str, Kind] = {
    **_fields(
        text="name image imagePullPolicy workingDir terminationMessagePath terminationMessagePolicy restartPolicy",
        switch="stdin stdinOnce tty",
        free="lifecycle livenessProbe readinessProbe startupProbe resources securityContext",
        lists="command args resizePolicy restartPolicyRules",
    ),
    "env": Entries(_fields(text="name value", free="valueFrom"), key="name"),
    "envFrom": Entries(_fields(text="prefix", free="secretRef configMapRef")),
    "ports": Entries(_fields(text="name protocol hostIP", whole="containerPort hostPort"), key="containerPort"),
    "volumeMounts": Entries(
        _fields(text="name mountPath subPath subPathExpr mountPropagation recursiveReadOnly", switch="readOnly"),
        key="mountPath",
    ),
    "volumeDevices": Entries(_fields(text="name devicePath"), key="devicePath"),
}
_POD: dict[str, Kind] = {
    **_fields(
        text="dnsPolicy hostname hostnameOverride nodeName preemptionPolicy priorityClassName restartPolicy "
        "runtimeClassName schedulerName serviceAccount serviceAccountName subdomain",
        whole="activeDeadlineSeconds priority terminationGracePeriodSeconds",
        switch="automountServiceAccountToken enableServiceLinks hostIPC hostNetwork hostPID hostUsers "
        "setHostnameAsFQDN shareProcessNamespace",
        free="affinity dnsConfig os overhead resources schedulingGroup securityContext workloadRef",
        lists="ephemeralContainers readinessGates",
    ),
    "nodeSelector": Texts(),
    "containers": Entries(_CONTAINER, key="name"),
    "initContainers": Entries(_CONTAINER, key="name"),
    "hostAliases": Entries(_fields(text="ip", lists="hostnames"), key="ip"),
    "imagePullSecrets": Entries(_fields(text="name"), key="name"),
    "resourceClaims": Entries(_fields(text="name resourceClaimName resourceClaimTemplateName"), key="name"),
    "schedulingGates": Entries(_fields(text="name"), key="name"),
    "tolerations": Entries(_fields(text="key operator value effect", whole="tolerationSeconds")),
    "topologySpreadConstraints": Entries(
        _fields(
            text="topologyKey whenUnsatisfiable nodeAffinityPolicy nodeTaintsPolicy",
            whole="maxSkew minDomains",
            free="labelSelector",
            lists="matchLabelKeys",
        ),
        key="topologyKey",
    ),
    "volumes": Entries(_fields(text="name", free=_VOLUME_SOURCES), key="name"),
}
TEMPLATE = Fields({"metadata": Fields({"labels": Texts(), "annotations": Texts()}), "spec": Fields(_POD)})


def template_problems(template: Any, path: FieldPath = ()) -> Iterator[Problem]:
    """Everything that is wrong with the shape of a podTemplate. path: where it stands."""
    yield from _problems(template, TEMPLATE, path)


def dotted(path: FieldPath) -> str:
    """podTemplate.spec.containers[0]: the field, from the template on."""
    return "podTemplate" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def _problems(value: Any, kind: Kind, path: FieldPath) -> Iterator[Problem]:
    match kind:
        case Plain():
            number_for_switch = isinstance(value, bool) and bool not in kind.types
            if value is not None and (number_for_switch or not isinstance(value, kind.types)):
                yield path, f"found {shown(value)}; write {kind.words}"
        case Texts():
            yield from _text_problems(value, path)
        case Fields():
            yield from _field_problems(value, kind.known, path)
        case Entries():
            yield from _entry_problems(value, kind, path)


def _text_problems(value: Any, path: FieldPath) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield path, f"found {shown(value)}; write {_BELOW}, or remove the line"
        return
    for name, text in value.items():
        if text is not None and not isinstance(text, str):
            yield (*path, name), f'found {shown(text)}; write a text, in quotes: "{text}"'


def _field_problems(value: Any, known: Mapping[str, Kind], path: FieldPath) -> Iterator[Problem]:
    if not isinstance(value, dict):
        yield path, f"found {shown(value)}; write {_BELOW}, or remove the line"
        return
    for name, below in value.items():
        if name in known:
            yield from _problems(below, known[name], (*path, name))
        else:
            yield (*path, name), _unknown(name, known)


def _entry_problems(value: Any, kind: Entries, path: FieldPath) -> Iterator[Problem]:
    if not isinstance(value, list | tuple):
        yield path, f"found {shown(value)}; write {_LIST}, or remove the line"
        return
    if kind.known is None:
        return
    for place, entry in enumerate(value):
        yield from _field_problems(entry, kind.known, (*path, place))
        if kind.key is not None and isinstance(entry, dict) and entry.get(kind.key) is None:
            example = "; that of the job's own container is `trainer`" if path[-1] == "containers" else ""
            yield (*path, place), f"has no `{kind.key}`, by which entries of this list merge; write it{example}"


def _unknown(name: str, known: Mapping[str, Kind]) -> str:
    folded = {field.lower(): field for field in known}
    close = difflib.get_close_matches(str(name).replace("_", "").lower(), folded, n=1, cutoff=0.7)
    if close:
        return f"unknown field. Did you mean `{folded[close[0]]}`?"
    if len(known) <= 12:
        return f"unknown field. Known here: {', '.join(f'`{field}`' for field in known)}"
    return "unknown field; Kubernetes has none of this name here"
