"""An object as it is stored. Reading is not admitting: what started once is managed to its end, whatever it says now.

Another release may have stored it, a looser one or a newer one. So nothing is asked here but types: no bound, no
pattern, no rule. What the types do not have rides along (`Contract.model_extra`). A value that cannot be read at all
leaves its field at the default; in a spec it rides along too, for the pods of its release can read it.
"""

from __future__ import annotations

import json
from functools import cache
from itertools import takewhile
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import SchemaValidator

from alignment_api.contract.base import Contract, FieldPath
from alignment_api.contract.job import AlignmentJob, ObjectMeta
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import AlignmentJobStatus

ContractType = TypeVar("ContractType", bound=Contract)

_BOUNDS = frozenset({"gt", "ge", "lt", "le", "multiple_of", "pattern", "min_length", "max_length"})
_PLAIN = frozenset({"cls", "default", "function", "metadata"})
"""Keys of a core schema below which there is no schema."""
_REMEMBERED = frozenset({"attempt", "instances", "stages", "roles", "startedAt", "finishedAt"})


class Unreadable(ValueError):
    """Nothing that this release could manage; the text says what is missing or unknown."""


def read_stored_job(raw: Any) -> AlignmentJob:
    """The job as the apiserver or a run's folder holds it. Raises Unreadable."""
    if not isinstance(raw, dict):
        raise Unreadable("no object with metadata and spec")
    spec = read_stored_spec(raw.get("spec", {}))
    if not spec.algorithm.given:
        known = ", ".join(type(spec.algorithm).model_fields)
        found = ", ".join(spec.algorithm.model_extra or ()) or "none"
        raise Unreadable(f"spec.algorithm: found {found}; this release knows {known}")
    return AlignmentJob.model_construct(
        api_version="alignment.run/v1alpha1",
        kind="AlignmentJob",
        metadata=read_leniently(ObjectMeta, raw.get("metadata", {}))[0],
        spec=spec,
        status=read_stored_status(raw.get("status", {})),
    )


def read_stored_spec(raw: Any) -> AlignmentJobSpec:
    """A spec; what could not be read stands beside the default of its field and is written again. Raises Unreadable."""
    spec, unread = read_leniently(AlignmentJobSpec, raw)
    for path in unread:
        parent, value = _at(spec, raw, path[:-1])
        if parent is not None:
            parent.model_extra[path[-1]] = value[path[-1]]
    return spec


def read_stored_status(raw: Any) -> AlignmentJobStatus:
    """A status. Its words may be those of another release: a stage, an end, a condition. Raises Unreadable.

    What lives and attempts are counted by must be read whole: a job whose pods were forgotten would get them twice.
    """
    status, unread = read_leniently(AlignmentJobStatus, raw, any_word=True)
    forgotten = sorted(path[0] for path in unread if path[0] in _REMEMBERED)
    if forgotten:
        raise Unreadable(f"status.{forgotten[0]} is not written as this release writes it")
    return status


def read_leniently(model: type[ContractType], raw: Any, any_word: bool = False) -> tuple[ContractType, set[FieldPath]]:
    """The object, and the fields of which something could not be read. Raises Unreadable.

    any_word: a field that is one of some words may have any other.
    """
    unread: set[FieldPath] = set()
    # JSON, for pydantic's strict mode reads arrays as tuples and strings as times only there.
    text = json.dumps(raw)
    while True:
        try:
            return _lenient(model, any_word).validate_json(text, strict=True, by_name=False), unread
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
        readable = json.loads(text)
        path = _leave_out(readable, first["loc"][:-1] if first["type"] == "missing" else first["loc"])
        if not path:
            where = ".".join(map(str, first["loc"])) or "it"
            raise Unreadable(f"{where}: {first['msg'].lower()}")
        unread.add(tuple(takewhile(lambda part: isinstance(part, str), path)))
        text = json.dumps(readable)


def _leave_out(value: Any, path: FieldPath) -> FieldPath:
    """Removes what stands at `path`, or the deepest part of the way that exists; returns where that was."""
    levels = [value]
    for part in path:
        try:
            levels.append(levels[-1][part])
        except (KeyError, IndexError, TypeError):
            break
    found = path[: len(levels) - 1]
    if found:
        del levels[-2][found[-1]]
    return found


def _at(parent: Any, raw: Any, path: FieldPath) -> tuple[Any, Any]:
    """What stands there, as an object and as it was read; None where a part of the way could not be read."""
    for part in path:
        name = next(name for name, field in type(parent).model_fields.items() if field.alias == part)
        parent, raw = getattr(parent, name), raw[part]
        if not isinstance(parent, Contract) or parent.model_extra is None:
            return None, raw
    return parent, raw


@cache
def _lenient(model: type[Contract], any_word: bool) -> SchemaValidator:
    """The model's own schema without what admits."""
    # Prebuilt validators are those of the strict models, which would be put in the place of the schemas below them.
    return SchemaValidator(_loosened(model.__pydantic_core_schema__, any_word), _use_prebuilt=False)


def _loosened(schema: Any, any_word: bool) -> Any:
    if isinstance(schema, list | tuple):
        return [_loosened(item, any_word) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if not isinstance(kind, str):  # fields by their names, which may be those of a schema's keys
        return {name: _loosened(field, any_word) for name, field in schema.items()}
    if kind == "function-after":  # checks what was read; what comes before reads
        return _loosened(schema["schema"] | ({"ref": schema["ref"]} if "ref" in schema else {}), any_word)
    if kind == "literal" and any_word:
        return {"type": "str"}
    kept = {key: value for key, value in schema.items() if key not in _BOUNDS}
    loose = {key: value if key in _PLAIN else _loosened(value, any_word) for key, value in kept.items()}
    if kind == "model" and loose["config"].get("extra_fields_behavior") == "forbid":
        loose["config"] |= {"extra_fields_behavior": "allow"}
    return loose
