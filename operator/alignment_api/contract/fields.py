"""Finding one's way in the contract: from a type or a value to what is below it."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from alignment_api.contract.base import Contract, FieldPath


def children(value: Contract) -> Iterator[tuple[FieldPath, Contract]]:
    """What of the contract stands right below the value, each with its path from there."""
    for name, field in type(value).model_fields.items():
        child = getattr(value, name)
        if isinstance(child, Contract):
            yield (str(field.alias),), child
        elif isinstance(child, tuple):
            items = ((index, item) for index, item in enumerate(child) if isinstance(item, Contract))
            yield from (((str(field.alias), index), item) for index, item in items)


def field_at(model: type[Contract], path: FieldPath) -> FieldInfo | None:
    """The field that `path` names; None where it leads into a free-form value or nowhere."""
    if not path:
        return None
    parent = model_at(model, path[:-1])
    return next((field for field in fields_of(parent) if field.alias == path[-1]), None)


def model_at(model: type[Contract], path: Sequence[str | int]) -> type[Contract] | None:
    """The type that stands at `path`, through optional values, lists and maps."""
    current: type[Contract] | None = model
    for part in path:
        if isinstance(part, int):
            continue  # an item of a list: the field's annotation has led to its type already
        field = next((field for field in fields_of(current) if field.alias == part), None)
        current = contract_in(field.annotation) if field is not None else None
    return current


def all_fields(model: type[Contract], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every field below `model`, nearest first, with its path in camelCase."""
    for field in fields_of(model):
        yield (*prefix, str(field.alias)), field
    for field in fields_of(model):
        child = contract_in(field.annotation)
        if child is not None:
            yield from all_fields(child, (*prefix, str(field.alias)))


def fields_of(model: type[Contract] | None) -> list[FieldInfo]:
    """Its fields; none where there is no type."""
    return list(model.model_fields.values()) if model is not None else []


def contract_in(annotation: Any) -> type[Contract] | None:
    """The type of the contract that a field holds: itself, optional, or as items of a list."""
    if isinstance(annotation, type) and issubclass(annotation, Contract):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple, list):
        return next((found for arg in get_args(annotation) if (found := contract_in(arg)) is not None), None)
    return None
