"""Which fields of a spec are sources: found by their type, so that a new one is mounted and checked without a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, get_args

from pydantic.fields import FieldInfo

from alignment_api.contract.base import Contract, FieldPath
from alignment_api.contract.sources import IsSource
from alignment_api.contract.spec import AlignmentJobSpec

WRITTEN: frozenset[FieldPath] = frozenset({("spec", "storage", "source"), ("spec", "output", "destination")})
"""Everything else is only read."""


def sources_of(spec: AlignmentJobSpec) -> dict[FieldPath, str]:
    """Every source that the spec names, by its field."""
    return dict(_sources_in(spec, ("spec",)))


def sources_read(spec: AlignmentJobSpec) -> dict[FieldPath, str]:
    """Those that the job only reads: models, data, code of reward functions, another job's checkpoints."""
    return {path: source for path, source in sources_of(spec).items() if path not in WRITTEN}


def _sources_in(value: Contract | tuple[Any, ...], path: FieldPath) -> Iterator[tuple[FieldPath, str]]:
    parts: Iterable[tuple[str | int, Any, bool]]
    if isinstance(value, tuple):
        parts = ((index, item, False) for index, item in enumerate(value))
    else:
        parts = ((alias, getattr(value, name), source) for name, alias, source in _fields(type(value)))
    for key, child, source in parts:
        if source and child is not None:
            yield (*path, key), child
        elif isinstance(child, Contract | tuple):
            yield from _sources_in(child, (*path, key))


@cache
def _fields(kind: type[Contract]) -> tuple[tuple[str, str, bool], ...]:
    """Name, alias and whether it is a source, of each field that is one or may hold one; every pass asks several
    times."""
    return tuple(
        (name, str(field.alias), _is_source(field))
        for name, field in kind.model_fields.items()
        if _is_source(field) or _holds_sources(field.annotation)
    )


def _holds_sources(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, Contract):
        return bool(_fields(annotation))
    return any(_holds_sources(option) for option in get_args(annotation))


def _is_source(field: FieldInfo) -> bool:
    """Of an optional field the mark stands on the type inside."""
    inside = (mark for option in get_args(field.annotation) for mark in getattr(option, "__metadata__", ()))
    return any(isinstance(mark, IsSource) for mark in (*field.metadata, *inside))
