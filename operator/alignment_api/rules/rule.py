"""What a rule is, and how the rules are asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignment_api.contract.base import Contract, FieldPath
from alignment_api.contract.fields import children

Mistake = tuple[FieldPath, str]
"""The field that is wrong, and for people what was found there and what to write instead."""


@dataclass(frozen=True)
class Rule:
    """What must hold of every value of one type. The CRD, `alignctl` and the operator's admission all read it here."""

    of: type[Contract]
    """The type, wherever it stands; those that inherit from it too."""
    message: str
    """What must hold and what to write; the same words from Python and from the apiserver."""
    found: Callable[[Any], str | None]
    """The predicate: what was found, in words, where the rule is broken; None where it holds."""
    cel: str | None
    """The same in CEL, true where the rule holds; None where CEL cannot say it."""
    example: Mapping[str, Any]
    """Breaks this rule and no other: fields of a manifest, over those of a sound DPO job."""
    field: tuple[str, ...] = ()
    """The field to blame, in camelCase below the value; the value itself where it is none of them alone."""


def broken(
    rules: Iterable[Rule], value: Contract, path: FieldPath = (), wrong: Iterable[FieldPath] = ()
) -> list[Mistake]:
    """Every rule that the value or something in it breaks, once for each field.

    wrong: fields that are wrong already. A rule is asked where all below it is right: what it would say of the rest
    might be untrue once that is mended.
    """
    told = list(wrong)
    mistakes = []
    for name, child in children(value):
        mistakes += broken(rules, child, (*path, *name), told)
    if any(_is_below(place, path) for place in (*told, *(place for place, _ in mistakes))):
        return mistakes
    fields: dict[FieldPath, str] = {}
    for rule in rules:
        found = rule.found(value) if isinstance(value, rule.of) else None
        if found is not None:
            fields.setdefault((*path, *rule.field), f"found {found}; {rule.message}")
    return mistakes + list(fields.items())


def _is_below(path: FieldPath, top: FieldPath) -> bool:
    return path[: len(top)] == top
