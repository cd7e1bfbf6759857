"""The CRD is generated from the types, and is structural."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from alignment_api.contract.fields import all_fields
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.crd import crd_yaml, custom_resource_definition
from alignment_api.yaml.tree import parse_yaml

FILE = Path(__file__).parents[3] / "crds" / "alignmentjobs.alignment.run.yaml"


def schema() -> Any:
    return custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def levels(level: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, level
    for name, child in level.get("properties", {}).items():
        yield from levels(child, (*path, name))
    if "items" in level:
        yield from levels(level["items"], (*path, "[]"))


def test_the_file_is_what_the_types_say() -> None:
    assert FILE.read_text() == crd_yaml(), "run `make crd`"


def test_the_file_reads_back_as_the_object() -> None:
    (document,), marks = parse_yaml(crd_yaml())
    assert marks == []
    assert document.plain() == custom_resource_definition()


def test_every_field_is_described() -> None:
    bare = [path for path, level in levels(schema()) if "description" not in level and path and path[-1] != "[]"]
    assert bare == [("apiVersion",), ("kind",), ("metadata",)], "those three are described by Kubernetes"


def test_nothing_but_structural_schema_is_used() -> None:
    for path, level in levels(schema()):
        assert not {"$ref", "$defs", "title", "const", "allOf", "oneOf", "not"} & level.keys(), path
        assert "anyOf" not in level or level["x-kubernetes-int-or-string"], path
        assert level.get("additionalProperties") is not False, path


def test_defaults_stand_on_their_fields_and_in_their_descriptions() -> None:
    found = dict(levels(schema()))
    rate = found["spec", "algorithm", "ppo", "critic", "learningRate"]
    assert rate["default"] == 5e-6
    assert rate["description"].endswith("Default: 5e-06.")
    assert "default" not in found["spec", "training", "learningRate"], "its default is its algorithm's"
    assert found["spec", "training"]["default"] == {}, "an object's default is what its fields' defaults give"
    assert found["spec", "roles"]["default"] == {}
    assert "default" not in found["spec", "storage"]


def test_no_field_has_a_default_that_only_null_would_turn_off() -> None:
    """The apiserver drops a null, and a job is handed on without any: what absent means is the one other value."""
    for root in (AlignmentJob, Platform):
        optional = [(path, field) for path, field in all_fields(root) if type(None) in get_args(field.annotation)]
        assert [path for path, field in optional if field.default is not None] == []


def test_a_status_has_no_defaults() -> None:
    assert [path for path, level in levels(schema()) if path[:1] == ("status",) and "default" in level] == []


def test_fractional_bounds_are_rules_and_whole_ones_are_keywords() -> None:
    found = dict(levels(schema()))
    smoothing = found["spec", "algorithm", "dpo", "labelSmoothing"]
    assert smoothing["minimum"] == 0
    assert "maximum" not in smoothing
    assert smoothing["x-kubernetes-validations"] == [{"rule": "self < 0.5", "message": "must be below 0.5"}]
    beta = found["spec", "algorithm", "dpo", "beta"]
    assert (beta["minimum"], beta["exclusiveMinimum"]) == (0, True)


def test_every_field_that_may_not_change_has_a_rule_that_names_it() -> None:
    found = dict(levels(schema()))
    rules = [
        rule["message"].split(" is immutable")[0]
        for path in ((), ("roles",), ("roles", "reference"))
        for rule in found[("spec", *path)]["x-kubernetes-validations"]
        if "is immutable" in rule["message"]
    ]
    assert {"spec.model", "spec.training", "spec.roles.policy", "spec.roles.reference.placement"} <= set(rules)
    deadlines = {f"spec.{name}DeadlineSeconds" for name in ("active", "ready", "stall")}
    free = {"spec.suspend", "spec.budgets", *deadlines}
    assert not {*free, "spec.roles.reference.replicas"} & set(rules)
    spec_fields = {f"spec.{name}" for name in found["spec",]["properties"]}
    assert spec_fields - set(rules) == {*free, "spec.roles"}


def test_everything_that_a_job_counts_is_bounded() -> None:
    spec = {path: level for path, level in levels(schema()) if path[:1] == ("spec",)}
    numbers = {path for path, level in spec.items() if level.get("type") == "integer"}
    assert len(numbers) > 40
    assert [path for path in numbers if "minimum" not in spec[path] or "maximum" not in spec[path]] == []
    assert [path for path, level in spec.items() if level.get("type") == "array" and "maxItems" not in level] == []
