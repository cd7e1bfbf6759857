"""What of a manifest is for clusters alone: told where a job runs on a laptop, which has no pods."""

from __future__ import annotations

from alignment_api.contract.base import Contract
from alignment_api.contract.role_spec import Roles
from alignment_api.contract.spec import AlignmentJobSpec

_OF_A_JOB = ("image", "credentials", "ready_deadline_seconds", "stall_deadline_seconds")
_OF_A_ROLE = ("pod_template", "cpu", "ephemeral_storage")


def unused_here(spec: AlignmentJobSpec) -> list[str]:
    """The fields that the manifest sets and that nothing on this machine reads, as `spec.image`."""
    found = [f"spec.{name}" for name in _set_in(spec, _OF_A_JOB)]
    for role in Roles.model_fields:
        found += [f"spec.roles.{role}.{name}" for name in _set_in(getattr(spec.roles, role), _OF_A_ROLE)]
    return found


def _set_in(value: Contract, names: tuple[str, ...]) -> list[str]:
    """Those that differ from their defaults, in camelCase."""
    fields = type(value).model_fields
    mine = (name for name in names if name in fields)
    return [str(fields[name].alias) for name in mine if getattr(value, name) != fields[name].default]
