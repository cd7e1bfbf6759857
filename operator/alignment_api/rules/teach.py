"""Words for a user's mistakes: what was found, and what to write instead."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from alignment_api.contract.base import Contract, FieldPath
from alignment_api.contract.fields import all_fields, field_at, fields_of, model_at
from alignment_api.contract.found import shown

_WANTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "`true` or `false`, without quotes",
    "bool_parsing": "`true` or `false`, without quotes",
    "string_type": "a text",
    "model_type": "its fields, indented below it",
    "dict_type": "its fields, indented below it",
    "tuple_type": "a list (`- ` before each item)",
    "list_type": "a list (`- ` before each item)",
}
_BOUNDS: dict[str, Callable[[dict[str, Any]], str]] = {
    "greater_than": lambda c: f"a number above {_number(c['gt'])}",
    "greater_than_equal": lambda c: f"a number of at least {_number(c['ge'])}",
    "less_than": lambda c: f"a number below {_number(c['lt'])}",
    "less_than_equal": lambda c: f"a number of at most {_number(c['le'])}",
    "literal_error": lambda c: str(c["expected"]).replace("'", "`"),
    "too_short": lambda c: f"at least {c['min_length']} item(s)",
    "too_long": lambda c: f"at most {c['max_length']} items",
    "string_too_short": lambda c: f"a text of at least {c['min_length']} character(s)",
    "string_too_long": lambda c: f"a text of at most {c['max_length']} characters",
    "finite_number": lambda c: "a finite number",
}


def explain(model: type[Contract], detail: ErrorDetails) -> str:
    """What was found at `detail["loc"]` of a `model`, and what to write instead."""
    kind, path = detail["type"], detail["loc"]
    if kind == "extra_forbidden":
        return unknown_field(model, path)
    if kind == "missing":
        return f"is missing{_meaning(field_at(model, path))}"
    if kind == "value_error":
        return str(detail["ctx"]["error"])
    found = f"found {shown(detail['input'])}"
    if kind in _BOUNDS:
        return f"{found}; write {_BOUNDS[kind](detail.get('ctx', {}))}{_meaning(field_at(model, path))}"
    if kind in _WANTED:
        return f"{found}; write {_WANTED[kind]}{_hint(detail['input'], kind)}{_meaning(field_at(model, path))}"
    if kind == "string_pattern_mismatch":
        field = field_at(model, path)
        return f"{found}, which does not fit{_meaning(field)}"
    return f"{found}; {detail['msg'].lower()}{_meaning(field_at(model, path))}"


def unknown_field(model: type[Contract], path: FieldPath) -> str:
    """That the field is unknown, and the known one that was probably meant."""
    name = str(path[-1])
    siblings = {str(field.alias): field for field in fields_of(model_at(model, path[:-1]))}
    folded = {known.lower(): known for known in siblings}
    close = difflib.get_close_matches(name.replace("_", "").lower(), folded, n=1, cutoff=0.7)
    if close:
        known = folded[close[0]]
        return f"unknown field. Did you mean `{known}`{_meaning(siblings[known])}?"
    elsewhere = [".".join(place) for place, _ in all_fields(model) if place[-1] == name and place[0] != "status"]
    if elsewhere:
        return f"unknown field here. Did you mean `{min(elsewhere, key=lambda place: place.count('.'))}`?"
    return f"unknown field. Known here: {', '.join(f'`{known}`' for known in siblings) or 'none'}"


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence."""
    return text.split(". ")[0].rstrip(".\n ")


def _number(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:g}"


def _meaning(field: FieldInfo | None) -> str:
    if field is None or not field.description:
        return ""
    sentence = first_sentence(field.description)
    is_word = sentence[1:2].islower() or sentence[1:2] == " "  # GPU, LoRA and `auto` keep their case
    return f" ({sentence[0].lower()}{sentence[1:]})" if is_word else f" ({sentence})"


def _hint(value: object, kind: str) -> str:
    if isinstance(value, str) and kind.startswith(("int", "float")):
        try:
            float(value)
        except ValueError:
            return ""
        return ", without quotes"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f': `"{json.dumps(value)}"`'
    return ""
