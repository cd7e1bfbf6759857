"""What may change on a running job."""

from typing import Any

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.rules.mutability import Change, immutable_changes


def spec(**fields: Any) -> AlignmentJobSpec:
    return AlignmentJobSpec.model_validate(
        {"model": {"source": "hf://a/b"}, "data": {"source": "hf://a/c"}, "algorithm": {"dpo": {}}} | fields
    )


def test_budgets_suspension_deadlines_and_the_number_of_servers_may_change() -> None:
    after = spec(
        suspend=True,
        budgets={"failures": 0},
        activeDeadlineSeconds=60,
        readyDeadlineSeconds=60,
        stallDeadlineSeconds=60,
        roles={"reference": {"replicas": 7}},
    )
    assert immutable_changes(spec(), after) == []
    online = {"algorithm": {"ppo": {"rewards": [{"function": {"numericAnswer": {}}}]}}}
    servers = {role: {"replicas": 3} for role in ("reference", "reward", "rollout")}
    assert immutable_changes(spec(**online), spec(**online, roles=servers)) == []
    (change,) = immutable_changes(spec(**online), spec(**online, roles={"actor": {"replicas": 3}}))
    assert change == Change(("roles", "actor", "replicas"), 1, 3)


def test_a_change_is_named_by_its_innermost_field_with_both_values() -> None:
    after = spec(training={"learningRate": 1e-5}, roles={"reference": {"gpus": 1}})
    assert immutable_changes(spec(), after) == [
        Change(("training", "learningRate"), None, 1e-5),
        Change(("roles", "reference", "gpus"), None, 1),
    ]


def test_what_was_absent_is_a_change_when_it_appears() -> None:
    (change,) = immutable_changes(spec(), spec(storage={"source": "pvc://a/b"}))
    assert change == Change(("storage",), None, {"source": "pvc://a/b"})
