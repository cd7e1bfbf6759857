"""The CustomResourceDefinition of AlignmentJob, generated from the types. `python -m alignment_api.crd > crds/...`.

Structural schema (no $ref, no null in anyOf), every field described, defaults where the types have them, and CEL rules
for what a schema cannot say. The types stay the one source: a rule that belongs to one field is derived from it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from alignment_api.algorithms import Algorithm
from alignment_api.job import GROUP, KIND, MAX_NAME, PLURAL, VERSION, AlignmentJob
from alignment_api.mutability import MUTABLE
from alignment_api.role_spec import ReferenceRole, Roles
from alignment_api.spec import AlignmentJobSpec
from alignment_api.yaml_text import dump_yaml

Schema = dict[str, Any]

COLUMNS = (
    ("Algorithm", "string", ".status.algorithm"),
    ("Stage", "string", ".status.stage"),
    ("Phase", "string", ".status.phase"),
    ("Progress", "string", ".status.progressText"),
    ("ETA", "string", ".status.eta"),
    ("Ready", "string", ".status.ready"),
    ("Age", "date", ".metadata.creationTimestamp"),
)

_FIX = "delete the job and apply it anew; a new name with checkpoint.resumeFrom goes on from its checkpoints"


def custom_resource_definition() -> Schema:
    """The CRD as an object. Same types, same object."""
    schema = _structural(AlignmentJob.model_json_schema(by_alias=True))
    schema["properties"]["metadata"] = {"type": "object"}
    schema["properties"]["status"] = _without_defaults(schema["properties"]["status"])
    schema["properties"]["spec"] = _with_defaults_told(schema["properties"]["spec"])
    schema["properties"]["apiVersion"] = {"type": "string"}
    schema["properties"]["kind"] = {"type": "string"}
    schema["required"] = ["spec"]
    for path, rules in _rules().items():
        _at(schema, path).setdefault("x-kubernetes-validations", []).extend(rules)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["aj"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [{"name": n, "type": t, "jsonPath": p} for n, t, p in COLUMNS],
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def crd_yaml() -> str:
    """The CRD as the text of the file in crds/."""
    note = "# Generated from operator/alignment_api by `make crd`; edit the types instead.\n"
    return note + dump_yaml(custom_resource_definition())


def _structural(root: Schema) -> Schema:
    definitions = root.get("$defs", {})

    def convert(schema: Schema) -> Schema:
        if "$ref" in schema:
            target = definitions[schema["$ref"].rsplit("/", 1)[-1]]
            return convert({**target, **{key: value for key, value in schema.items() if key != "$ref"}})
        if any(option == {"type": "null"} for option in schema.get("anyOf", ())):
            (option,) = [option for option in schema["anyOf"] if option != {"type": "null"}]
            rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
            return convert({**option, **rest})
        return _keywords({key: value for key, value in schema.items() if key not in ("title", "$defs")}, convert)

    return convert(root)


def _keywords(schema: Schema, convert: Callable[[Schema], Schema]) -> Schema:
    """One level of JSON Schema 2020-12 as OpenAPI 3.0 with Kubernetes' extensions."""
    result = {key: value for key, value in schema.items() if key not in ("properties", "items", "additionalProperties")}
    if "properties" in schema:
        result["properties"] = {name: convert(child) for name, child in schema["properties"].items()}
    if "items" in schema:
        result["items"] = convert(schema["items"])
    extra = schema.get("additionalProperties")
    if extra is True:
        result["x-kubernetes-preserve-unknown-fields"] = True
    elif extra:
        result["additionalProperties"] = convert(extra)
    _bounds(result)
    if "const" in result:
        result["enum"] = [result.pop("const")]
    if result.get("type") == "integer":
        result["format"] = "int64"
    if "default" in result:
        result["default"] = _minimal(result["default"], result)
    return result


_BOUNDS = {
    "minimum": (">=", "at least", {}),
    "exclusiveMinimum": (">", "above", {"exclusiveMinimum": True}),
    "maximum": ("<=", "at most", {}),
    "exclusiveMaximum": ("<", "below", {"exclusiveMaximum": True}),
}


def _bounds(schema: Schema) -> None:
    """Bounds as OpenAPI 3.0 writes them.

    A fractional one becomes a CEL rule: the apiserver compares a whole number (`0`) with it after cutting it to an
    integer, and so refuses 0 below 0.5.
    """
    for keyword, (operator, words, flag) in _BOUNDS.items():
        bound = schema.pop(keyword, None)
        if bound is not None and float(bound).is_integer():
            schema |= {keyword.replace("exclusiveM", "m"): bound, **flag}
        elif bound is not None:
            rules = schema.setdefault("x-kubernetes-validations", [])
            rules.append(_rule(f"self {operator} {bound}", f"must be {words} {bound}"))


def _minimal(default: Any, schema: Schema) -> Any:
    """A default without what its own fields' defaults give again: an object's is `{}` as a rule."""
    if not isinstance(default, dict):
        return default
    properties = schema.get("properties", {})
    return {
        name: value
        for name, value in default.items()
        if value is not None and _minimal(value, properties.get(name, {})) != properties.get(name, {}).get("default")
    }


def _without_defaults(schema: Schema) -> Schema:
    # A status field that is absent says that nobody has looked yet; a default would say that somebody had.
    return _everywhere(schema, lambda level: {key: value for key, value in level.items() if key != "default"})


def _with_defaults_told(schema: Schema) -> Schema:
    # `kubectl explain` shows descriptions, not defaults.
    def tell(level: Schema) -> Schema:
        if "default" not in level or isinstance(level["default"], dict | list):
            return level
        return level | {"description": f"{level['description']} Default: {json.dumps(level['default'])}."}

    return _everywhere(schema, tell)


def _everywhere(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    result = change(schema)
    if "properties" in result:
        result |= {"properties": {name: _everywhere(child, change) for name, child in result["properties"].items()}}
    if "items" in result:
        result |= {"items": _everywhere(result["items"], change)}
    return result


def _at(schema: Schema, path: tuple[str, ...]) -> Schema:
    for name in path:
        schema = schema["properties"][name]
    return schema


def _rules() -> Mapping[tuple[str, ...], list[Schema]]:
    """Path -> CEL rules there."""
    rules: dict[tuple[str, ...], list[Schema]] = {
        (): _name_rules(),
        ("spec",): _immutable(AlignmentJobSpec, (), apart=("roles",)),
        ("spec", "algorithm"): [_exactly_one_algorithm()],
        ("spec", "data", "evaluation"): [
            _rule("!(has(self.fraction) && has(self.source))", "fraction and source exclude each other; keep one")
        ],
        ("spec", "roles"): _immutable(Roles, ("roles",), apart=("reference",)),
    }
    for role, field in Roles.model_fields.items():
        sizes = _aliases(_model_of(field.annotation))
        here = ("spec", "roles", str(field.alias or role))
        rules[here] = []
        if {"gpus", "processes"} <= set(sizes):
            advice = "gpus and processes exclude each other; processes is for pools without GPUs"
            rules[here].append(_rule("!(has(self.gpus) && has(self.processes))", advice))
        for size in ("cpu", "memory"):
            rules[(*here, size)] = [_above_zero(size)]
    rules["spec", "roles", "reference"] += _immutable(ReferenceRole, ("roles", "reference"))
    return rules


def _name_rules() -> list[Schema]:
    return [
        _rule(
            f"size(self.metadata.name) <= {MAX_NAME}",
            f"metadata.name has more than {MAX_NAME} characters; shorten it: pods and Services are named after it",
        ),
        _rule(
            "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name must be lower case letters, digits and dashes; remove the dots",
        ),
    ]


def _exactly_one_algorithm() -> Schema:
    given = ", ".join(f"has(self.{name})" for name in _aliases(Algorithm))
    return _rule(
        f"[{given}].filter(one, one).size() == 1",
        "exactly one algorithm must be given; write for example `dpo: {beta: 0.1}`",
    )


def _above_zero(size: str) -> Schema:
    number = "type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))"
    return _rule(number, f"{size} must be above zero; write cores as 4 or 500m, memory as 16Gi")


def _immutable(model: type[BaseModel], path: tuple[str, ...], apart: tuple[str, ...] = ()) -> list[Schema]:
    """A rule for each field of `model`, which stands at `path` below spec, but those that may change or stand apart."""
    names = [name for name in _aliases(model) if name not in apart and (*path, name) not in MUTABLE]
    return [_unchanged(name, ".".join(("spec", *path, name))) for name in names]


def _unchanged(field: str, path: str) -> Schema:
    same = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    return _rule(same, f"{path} is immutable: {_FIX}") | {"fieldPath": f".{field}", "reason": "FieldValueForbidden"}


def _rule(rule: str, message: str) -> Schema:
    return {"rule": rule, "message": message}


def _aliases(model: type[BaseModel]) -> list[str]:
    return [str(field.alias) for field in model.model_fields.values()]


def _model_of(annotation: Any) -> type[BaseModel]:
    assert isinstance(annotation, type)
    assert issubclass(annotation, BaseModel), annotation
    return annotation


if __name__ == "__main__":
    sys.stdout.write(crd_yaml())
