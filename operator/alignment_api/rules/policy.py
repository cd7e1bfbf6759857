"""Where podTemplates of a spec have the wrong shape, and where it asks for what the platform's policy does not let."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from alignment_api.contract.pod_template import FieldPath, Problem, template_problems
from alignment_api.contract.policy import Policy
from alignment_api.contract.role_spec import Roles
from alignment_api.contract.spec import AlignmentJobSpec

CONTAINER = "trainer"
"""The job's own container."""
_RESERVED_ANNOTATIONS = ("container.apparmor.security.beta.kubernetes.io/", "seccomp.security.alpha.kubernetes.io/")


def shape_problems(spec: AlignmentJobSpec) -> Iterator[Problem]:
    """What is wrong with the shape of the spec's podTemplates."""
    for path, template in _templates(spec):
        yield from template_problems(template, path)


def policy_problems(spec: AlignmentJobSpec, policy: Policy) -> Iterator[Problem]:
    """What the platform does not let a job ask for. The templates have a sound shape."""
    if spec.image is not None:
        yield from _name_problem(spec.image, policy.images, ("spec", "image"), "image")
    for place, credential in enumerate(spec.credentials):
        path: FieldPath = ("spec", "credentials", place, "secretName")
        yield from _name_problem(credential.secret_name, policy.secrets, path, "Secret")
    for path, template in _templates(spec):
        for below, field in _set_fields(template):
            if field not in policy.pod_template:
                allowed = ", ".join(policy.pod_template) or "nothing"
                yield (*path, *below), f"the platform lets no job set this; its policy.podTemplate allows {allowed}"
        yield from _annotation_problems(template, path)
        for below, name, what in _named(template, path):
            yield from _name_problem(name, policy.images if what == "image" else policy.secrets, below, what)


def _templates(spec: AlignmentJobSpec) -> Iterator[tuple[FieldPath, dict[str, Any]]]:
    for role in Roles.model_fields:
        template = getattr(spec.roles, role).pod_template
        if template is not None:
            yield ("spec", "roles", role, "podTemplate"), template


def _set_fields(template: dict[str, Any]) -> Iterator[tuple[FieldPath, str]]:
    """Every field that the template sets: where, and as a policy names it."""
    for name in template.get("metadata", {}):
        yield ("metadata", name), f"metadata.{name}"
    for name, value in template.get("spec", {}).items():
        if name == "containers":
            yield from _container_fields(value)
        elif name == "volumes":
            yield from _volume_fields(value)
        else:
            yield ("spec", name), f"spec.{name}"


def _container_fields(containers: list[dict[str, Any]]) -> Iterator[tuple[FieldPath, str]]:
    for place, container in enumerate(containers):
        if container["name"] != CONTAINER:
            yield ("spec", "containers", place), "spec.containers"
            continue
        for name in container:
            if name != "name":
                yield ("spec", "containers", place, name), f"spec.containers.{name}"


def _volume_fields(volumes: list[dict[str, Any]]) -> Iterator[tuple[FieldPath, str]]:
    for place, volume in enumerate(volumes):
        for name in volume:
            if name != "name":
                yield ("spec", "volumes", place, name), f"spec.volumes.{name}"


def _annotation_problems(template: dict[str, Any], path: FieldPath) -> Iterator[Problem]:
    for name in template.get("metadata", {}).get("annotations", {}):
        if name.startswith(_RESERVED_ANNOTATIONS):
            yield (*path, "metadata", "annotations", name), "weakens how the pod is confined; remove it"


def _named(template: dict[str, Any], path: FieldPath) -> Iterator[tuple[FieldPath, str, str]]:
    """Images and Secrets that the template names."""
    spec = template.get("spec", {})
    for place, container in enumerate(spec.get("containers", ())):
        here: FieldPath = (*path, "spec", "containers", place)
        if container.get("image") is not None:
            yield (*here, "image"), container["image"], "image"
        for number, variable in enumerate(container.get("env", ())):
            reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
            if isinstance(reference, dict):
                yield (*here, "env", number, "valueFrom", "secretKeyRef"), str(reference.get("name")), "Secret"
    for place, volume in enumerate(spec.get("volumes", ())):
        if isinstance(volume.get("secret"), dict):
            yield (*path, "spec", "volumes", place, "secret"), str(volume["secret"].get("secretName")), "Secret"
    for place, entry in enumerate(spec.get("imagePullSecrets", ())):
        yield (*path, "spec", "imagePullSecrets", place), entry["name"], "Secret"


def _name_problem(name: str, patterns: tuple[str, ...], path: FieldPath, what: str) -> Iterator[Problem]:
    if not any(_matches(name, pattern) for pattern in patterns):
        allowed = ", ".join(f"`{pattern}`" for pattern in patterns) or "none"
        yield path, f"the platform lets no job name {what} `{name}`; its policy.{what.lower()}s allows {allowed}"


def _matches(name: str, pattern: str) -> bool:
    """`*` stands for any characters; the chart's admission policy reads patterns so, too."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), name) is not None
