"""Which fields of a job may change while it runs: the same on a cluster (CEL in the CRD) and on a laptop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alignment_api.contract.spec import AlignmentJobSpec

SpecPath = tuple[str, ...]

SCALABLE = ("reference", "reward", "rollout")
"""Roles whose servers come and go: their number may change."""
MUTABLE: frozenset[SpecPath] = frozenset(
    {
        ("suspend",),
        ("budgets",),
        ("activeDeadlineSeconds",),
        ("readyDeadlineSeconds",),
        ("stallDeadlineSeconds",),
        *(("roles", role, "replicas") for role in SCALABLE),
    }
)
"""Everything else decides what the job computes or where, and stays as it was."""


@dataclass(frozen=True)
class Change:
    """A field that differs between two specs."""

    path: SpecPath
    """Below `spec`, in camelCase."""
    before: Any
    after: Any


def immutable_changes(before: AlignmentJobSpec, after: AlignmentJobSpec) -> list[Change]:
    """The fields that differ and must not."""
    changes = _differences(_as_json(before), _as_json(after), ())
    return [change for change in changes if not any(change.path[: len(path)] == path for path in MUTABLE)]


def _as_json(spec: AlignmentJobSpec) -> Any:
    return spec.model_dump(mode="json", by_alias=True)


def _differences(before: Any, after: Any, path: SpecPath) -> list[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        return [
            change for name in names for change in _differences(before.get(name), after.get(name), (*path, str(name)))
        ]
    return [] if before == after else [Change(path, before, after)]
