"""A job as its pods are handed it: by an operator that may be of a newer release than the pods' image.

Every default is written out, those of fields that an older trainer does not have among them. Such a field asks for
nothing that the job was not let in with, so it may be left out; one that somebody has written may not.
"""

from __future__ import annotations

import json
from typing import Any

from alignment_api.contract.base import Contract, FieldPath
from alignment_api.contract.fields import children, field_at
from alignment_api.contract.job import GROUP, AlignmentJob
from alignment_api.contract.spec import AlignmentJobSpec

DEFAULTS = f"{GROUP}/defaults"
"""Annotation: a JSON list of the fields that stand at their defaults, each as a list from the root."""


def defaults_in(spec: AlignmentJobSpec) -> str:
    """The annotation's value."""
    return json.dumps(_defaults(spec, ("spec",)), separators=(",", ":"))


def without_newer_defaults(job: dict[str, Any]) -> dict[str, Any]:
    """The job, a JSON-like value, without the fields at their defaults that this release does not have."""
    annotations = (job.get("metadata") or {}).get("annotations") or {}
    for path in json.loads(annotations.get(DEFAULTS, "[]")):
        if field_at(AlignmentJob, path) is None:
            parent: Any = job
            for part in path[:-1]:
                parent = parent[part]
            parent.pop(path[-1], None)
    return job


def _defaults(value: Contract, path: FieldPath) -> list[FieldPath]:
    fields = type(value).model_fields.items()
    standing = [str(field.alias) for name, field in fields if getattr(value, name) == field.default]
    found: list[FieldPath] = [(*path, name) for name in standing]
    for place, child in children(value):
        if place[0] not in standing:
            found += _defaults(child, (*path, *place))
    return found
