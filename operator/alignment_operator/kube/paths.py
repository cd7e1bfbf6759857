"""Where objects live in the apiserver."""

from __future__ import annotations

from alignment_api.contract.job import API_VERSION, KIND, PLURAL

_COLLECTIONS = {
    KIND: ("apis/" + API_VERSION, PLURAL),
    "Pod": ("api/v1", "pods"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Secret": ("api/v1", "secrets"),
    "Service": ("api/v1", "services"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "Event": ("api/v1", "events"),
    "Node": ("api/v1", "nodes"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "PodGroup": ("apis/scheduling.k8s.io/v1beta1", "podgroups"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
}


def collection(kind: str, namespace: str | None = None) -> str:
    """Path of all objects of a kind; of one namespace, or of the cluster."""
    prefix, plural = _COLLECTIONS[kind]
    return f"/{prefix}/namespaces/{namespace}/{plural}" if namespace else f"/{prefix}/{plural}"


def named(kind: str, namespace: str, name: str) -> str:
    """Path of one object; with an empty namespace, of a cluster-scoped one."""
    return f"{collection(kind, namespace)}/{name}"
