"""The base of every type in the contract."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from pydantic.alias_generators import to_camel

FieldPath = tuple[str | int, ...]
"""To a field, in camelCase, from the root of what is spoken of: ("spec", "credentials", 0, "secretName")."""


def field_path(path: FieldPath) -> str:
    """spec.credentials[0].secretName"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


class Contract(BaseModel):
    """Immutable, closed to unknown fields; camelCase in manifests, snake_case in code.

    Manifests are read with `by_name=False` (see `yaml/manifest.py`): kubectl knows the camelCase names alone.
    What is stored is read with more patience (see `stored.py`); what it has beyond the type rides along in
    `model_extra`, through every copy, and is written again as it was read.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,  # of a file that may be anybody's
        use_attribute_docstrings=True,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )

    @model_serializer(mode="wrap")
    def _with_what_rides_along(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = serialize(self)
        return fields | self.model_extra if self.model_extra else fields
