"""The base of every type in the contract."""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


class Contract(BaseModel):
    """Immutable, closed to unknown fields; camelCase in manifests, snake_case in code.

    Manifests are read with `by_name=False` (see `manifest.py`): kubectl knows the camelCase names alone.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )


class WrongField(ValueError):
    """Raised by a rule over several fields: `below` is the one that is wrong, from where the rule stands."""

    def __init__(self, below: Iterable[str], message: str) -> None:
        super().__init__(message)
        self.below = tuple(below)
