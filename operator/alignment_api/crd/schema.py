"""The CustomResourceDefinition of AlignmentJob, generated from the types.

Structural schema (no $ref, no null in anyOf), every field described, defaults where the types have them, and CEL rules
for what a schema cannot say. The types stay the one source: a rule that belongs to one field is derived from it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from alignment_api.contract.job import GROUP, KIND, PLURAL, VERSION, AlignmentJob
from alignment_api.crd.rules import ITEM, Schema, cel_rules, make_rule
from alignment_api.yaml.text import dump_yaml

COLUMNS = (
    ("Algorithm", "string", ".status.algorithm"),
    ("Stage", "string", ".status.stage"),
    ("Phase", "string", ".status.phase"),
    ("Progress", "string", ".status.progressText"),
    ("ETA", "string", ".status.eta"),
    ("Ready", "string", ".status.ready"),
    ("Age", "date", ".metadata.creationTimestamp"),
)


def custom_resource_definition() -> Schema:
    """The CRD as an object. Same types, same object."""
    schema = _structural(AlignmentJob.model_json_schema(by_alias=True))
    schema["properties"]["metadata"] = {"type": "object"}
    schema["properties"]["status"] = _open(schema["properties"]["status"])
    schema["properties"]["spec"] = _with_defaults_told(schema["properties"]["spec"])
    schema["properties"]["apiVersion"] = {"type": "string"}
    schema["properties"]["kind"] = {"type": "string"}
    schema["required"] = ["spec"]
    for path, rules in cel_rules().items():
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
            rules.append(make_rule(f"self {operator} {bound}", f"must be {words} {bound}"))


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


def _open(schema: Schema) -> Schema:
    """A status, which another release may have written: its words and fields are kept, whatever they are."""

    def opened(level: Schema) -> Schema:
        # Absent says that nobody has looked yet; a default would say that somebody had.
        rest = {key: value for key, value in level.items() if key not in ("default", "enum")}
        return rest | ({"x-kubernetes-preserve-unknown-fields": True} if "properties" in rest else {})

    return _everywhere(schema, opened)


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
        schema = schema["items"] if name == ITEM else schema["properties"][name]
    return schema
