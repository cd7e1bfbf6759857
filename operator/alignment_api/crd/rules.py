"""CEL rules of the CRD: those of the table, wherever their types stand, and what may not change on a running job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from alignment_api.contract.base import Contract
from alignment_api.contract.fields import contract_in
from alignment_api.contract.job import AlignmentJob, ObjectMeta
from alignment_api.contract.role_spec import Roles
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.rules.mutability import MUTABLE, SCALABLE
from alignment_api.rules.rule import Rule
from alignment_api.rules.table import RULES

Schema = dict[str, Any]
Place = tuple[str, ...]
"""Properties from the root of the schema; ITEM stands for the items of a list."""

ITEM = "[]"
_FIX = "delete the job and apply it anew; a new name with checkpoint.resumeFrom starts from its weights"


def cel_rules() -> dict[Place, list[Schema]]:
    """Place -> the rules there."""
    rules: dict[Place, list[Schema]] = {}
    for place, model in _types(AlignmentJob, ()):
        asked = [rule for rule in RULES if rule.cel is not None and issubclass(model, rule.of)]
        if model is ObjectMeta:
            rules[()] = [_of_metadata(rule) for rule in asked]
        elif asked:
            rules[place] = [_admitting(rule, place) for rule in asked]
    for place, fields in _immutable():
        rules.setdefault(place, []).extend(_unchanged(name, place) for name in fields)
    return rules


def make_rule(rule: str, message: str) -> Schema:
    """One entry of x-kubernetes-validations."""
    return {"rule": rule, "message": message}


def _admitting(rule: Rule, place: Place) -> Schema:
    """Asked when the job is created; later only where a list has no identity by which to find its item again.

    A job that was let in once may be suspended, scaled and ended under a stricter release, whatever it says. But no
    update may break what holds: that is asked where a field may change.
    """
    made = make_rule(str(rule.cel), rule.message)
    if rule.field:
        made["fieldPath"] = "." + ".".join(rule.field)
    if ITEM in place:
        return made
    goes_on = "oldSelf.hasValue()"
    if _may_change((*place, *rule.field)):
        held = re.sub(r"\bself\b", "oldSelf.value()", str(rule.cel))
        goes_on += f" && !({held})"
    return made | {"rule": f"{goes_on} || ({rule.cel})", "optionalOldSelf": True}


def _may_change(place: Place) -> bool:
    """Whether a field there, or in what stands there, may change while the job runs."""
    fields = [("spec", *path) for path in MUTABLE]
    return any(field[: len(place)] == place or place[: len(field)] == field for field in fields)


def _of_metadata(rule: Rule) -> Schema:
    """Kubernetes takes rules about metadata at the root alone, and no path that leads there."""
    asked = str(rule.cel).replace("self.", "self.metadata.")
    message = ".".join(("metadata", *rule.field)) + f": {rule.message}"
    return make_rule(f"oldSelf.hasValue() || ({asked})", message) | {"optionalOldSelf": True}


def _types(model: type[Contract], place: Place) -> Iterator[tuple[Place, type[Contract]]]:
    """Every type of the contract below the model, where it stands. A status is ours and has no rules."""
    yield place, model
    for field in model.model_fields.values():
        if (child := contract_in(field.annotation)) is not None and field.alias != "status":
            items = (ITEM,) if _is_list(field.annotation) else ()
            yield from _types(child, (*place, str(field.alias), *items))


def _is_list(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is tuple


def _immutable() -> Iterator[tuple[Place, list[str]]]:
    """Where which fields must stay: all but those that may change, and those that have such rules below themselves."""
    yield ("spec",), _apart_from(AlignmentJobSpec, (), "roles")
    yield ("spec", "roles"), _apart_from(Roles, ("roles",), *SCALABLE)
    for role in SCALABLE:
        model = contract_in(Roles.model_fields[role].annotation)
        assert model is not None
        yield ("spec", "roles", role), _apart_from(model, ("roles", role))


def _apart_from(model: type[Contract], path: Place, *names: str) -> list[str]:
    aliases = (str(field.alias) for field in model.model_fields.values())
    return [name for name in aliases if name not in names and (*path, name) not in MUTABLE]


def _unchanged(field: str, place: Place) -> Schema:
    same = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    message = f"{'.'.join((*place, field))} is immutable: {_FIX}"
    return make_rule(same, message) | {"fieldPath": f".{field}", "reason": "FieldValueForbidden"}
