"""A JSON-like value to an object of the contract, or every mistake in it at once.

As the apiserver does it: camelCase names alone, no coercion of `"5"` to 5, no unknown field; and the table of rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from alignment_api.contract.base import Contract, field_path
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.stored import Unreadable, read_leniently
from alignment_api.rules.rule import Mistake, Rule, broken
from alignment_api.rules.table import RULES
from alignment_api.rules.teach import explain

ContractType = TypeVar("ContractType", bound=Contract)


def check(
    model: type[ContractType], value: Any, rules: Iterable[Rule] = ()
) -> tuple[ContractType | None, list[Mistake]]:
    """The object that a JSON-like value stands for, and every mistake in it: of shape, and of rules."""
    try:
        # JSON, for pydantic's strict mode reads arrays as tuples and strings as times only there.
        read = model.model_validate_json(json.dumps(value), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        mistakes = _mistakes(model, error)
    else:
        return read, broken(rules, read)
    with suppress(Unreadable):
        mistakes += broken(rules, read_leniently(model, value)[0], wrong=[path for path, _ in mistakes])
    return None, mistakes


def why_not(job: AlignmentJob) -> tuple[str, ...]:
    """Why the contract does not let the job start, as `field: what to write`; empty where it does."""
    return why_not_stored(job.model_dump(mode="json", exclude_none=True, exclude={"status"}))


def why_not_stored(raw: dict[str, Any]) -> tuple[str, ...]:
    """The same of an object as the apiserver holds it."""
    _, mistakes = check(AlignmentJob, {name: value for name, value in raw.items() if name != "status"}, RULES)
    return tuple(f"{field_path(path)}: {message}" for path, message in mistakes)


def _mistakes(model: type[Contract], error: ValidationError) -> list[Mistake]:
    details: list[ErrorDetails] = error.errors(include_url=False)
    return [(detail["loc"], explain(model, detail)) for detail in details if not _follows(detail, details)]


def _follows(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """A list is said to be too short also when its items were refused: those mistakes are told already."""
    depth = len(detail["loc"])
    below = (other for other in details if len(other["loc"]) > depth and other["loc"][:depth] == detail["loc"])
    return detail["type"] == "too_short" and any(below)
