"""Every rule of the table, broken by its own example."""

from __future__ import annotations

import json
import re

import pytest
from tests.rule_examples import JOB, broken_job, broken_text, examples

from alignment_api.contract.algorithms import OPTIONS, Online
from alignment_api.crd.rules import cel_rules
from alignment_api.rules.check import why_not_stored
from alignment_api.rules.mutability import SCALABLE
from alignment_api.rules.table import RULES
from alignment_api.yaml.manifest import InvalidManifest, read_begun_manifest, read_manifest


@pytest.mark.parametrize("name", examples())
def test_a_rule_is_broken_by_its_example_alone_and_says_what_was_found(name: str) -> None:
    rule = examples()[name]
    with pytest.raises(InvalidManifest) as error:
        read_manifest(broken_text(rule))
    (problem,) = error.value.problems
    assert problem.field.endswith(".".join(rule.field))
    assert re.fullmatch(rf"found .+; {re.escape(rule.message)}", problem.message)
    assert why_not_stored(broken_job(rule)) == (f"{problem.field}: {problem.message}",), "admission says the same"


@pytest.mark.parametrize("name", examples())
def test_a_job_that_has_begun_is_not_asked_again(name: str) -> None:
    assert read_begun_manifest(broken_text(examples()[name])).metadata.name


def test_a_sound_job_breaks_no_rule() -> None:
    assert read_manifest(json.dumps(JOB)).metadata.name == "sound"


@pytest.mark.parametrize("algorithm", [name for name, options in OPTIONS.items() if not issubclass(options, Online)])
def test_the_storage_of_all_that_learns_from_pairs_may_lie_in_a_bucket(algorithm: str) -> None:
    """By the rules' own examples it may not for the others."""
    spec = JOB["spec"] | {"algorithm": {algorithm: {}}, "storage": {"source": "s3://bucket/run"}}
    assert read_manifest(json.dumps(JOB | {"spec": spec})).spec.storage is not None


def test_every_rule_says_what_to_write() -> None:
    assert [rule.message for rule in RULES if ":" not in rule.message] == []


def test_the_crd_has_each_rule_wherever_its_type_stands() -> None:
    places = cel_rules()
    origin = "fraction and source exclude each other: keep one"
    found = [place for place, rules in places.items() if any(rule["message"] == origin for rule in rules)]
    pairs = ("rewards", "[]", "train", "preferences", "evaluation")
    assert found == [
        ("spec", "data", "evaluation"),
        ("spec", "algorithm", "ppo", *pairs),
        ("spec", "algorithm", "grpo", *pairs),
    ]
    sizes = [place[-1] for place, rules in places.items() if any("gpus and processes" in r["message"] for r in rules)]
    assert sizes == ["policy", "actor", "critic", "reference", "reward", "rollout", "evaluator"]


def test_mistakes_of_shape_and_of_rules_are_told_at_once() -> None:
    job = JOB | {
        "metadata": {"name": "7b"},
        "spec": JOB["spec"]
        | {
            "training": {"batchSize": 0},
            "data": {"source": "pvc://data/a", "evaluation": {"fraction": 0.1, "source": "pvc://data/b"}},
            "roles": {"policy": {"gpus": 1, "processes": 2}, "critic": {"gpus": 1}},
        },
    }
    with pytest.raises(InvalidManifest) as error:
        read_manifest(json.dumps(job))
    assert [problem.field for problem in error.value.problems] == [
        "metadata.name",
        "spec.data.evaluation",
        "spec.roles.policy",
        "spec.training.batchSize",
    ], "and no word on critic: whether dpo has one is asked once its spec is right below that"


def test_a_job_is_asked_again_only_for_what_may_change_and_only_where_it_kept_the_rule() -> None:
    rules = [rule for place, rules in cel_rules().items() if "[]" not in place for rule in rules]
    admitting = [rule for rule in rules if "immutable" not in rule["message"]]
    assert len(admitting) > 30
    assert all(rule["optionalOldSelf"] for rule in admitting)
    again = [rule for rule in admitting if not rule["rule"].startswith("oldSelf.hasValue() || ")]
    assert all(rule["rule"].startswith("oldSelf.hasValue() && !(") for rule in again)
    assert {rule.get("fieldPath") for rule in again} == {None, *(f".roles.{role}" for role in SCALABLE)}
    about_roles = {rule.message for rule in RULES for role in SCALABLE if rule.field == ("roles", role)}
    assert about_roles <= {rule["message"] for rule in again}
