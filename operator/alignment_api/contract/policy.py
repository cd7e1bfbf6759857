"""What a job may ask of its pods: the platform's policy. `policy_rules.py` checks it.

Creating an AlignmentJob makes pods with the operator's identity. So what a job may put into them is the platform's to
say, and what lies beyond stays out whatever the platform says: privileges, host namespaces and paths, service accounts,
containers besides the job's own.
"""

from __future__ import annotations

from typing import Literal

from alignment_api.contract.base import Contract

TemplateField = Literal[
    "metadata.labels",
    "metadata.annotations",
    "spec.affinity",
    "spec.tolerations",
    "spec.volumes.persistentVolumeClaim",
    "spec.volumes.emptyDir",
    "spec.containers.env",
    "spec.containers.resources",
    "spec.containers.volumeMounts",
    "spec.containers.image",
    "spec.containers.imagePullPolicy",
    "spec.imagePullSecrets",
    "spec.nodeSelector",
    "spec.priorityClassName",
    "spec.runtimeClassName",
    "spec.schedulerName",
    "spec.topologySpreadConstraints",
    "spec.volumes.configMap",
    "spec.volumes.ephemeral",
    "spec.volumes.secret",
]


class Policy(Contract):
    """What a job may set of its pods. A pool's podTemplate is the platform's own and is not bound by it."""

    pod_template: tuple[TemplateField, ...] = (
        "metadata.labels",
        "metadata.annotations",
        "spec.affinity",
        "spec.tolerations",
        "spec.volumes.persistentVolumeClaim",
        "spec.volumes.emptyDir",
        "spec.containers.env",
        "spec.containers.resources",
        "spec.containers.volumeMounts",
    )
    """Fields that a role's podTemplate may have; `containers` is the job's own container alone."""
    images: tuple[str, ...] = ("*",)
    """Images that a job may name, as patterns: `registry.example/team/*`. Empty: the platform's image alone."""
    secrets: tuple[str, ...] = ("*",)
    """Secrets of its namespace that a job may name, as patterns: `hf-*`. Empty: none."""
