"""A laptop says which fields of a manifest it does not read."""

from __future__ import annotations

from typing import Any

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_cli.unused import unused_here


def spec(**fields: Any) -> AlignmentJobSpec:
    rows = {"model": {"source": "file:///model"}, "data": {"source": "file:///rows.jsonl"}, "algorithm": {"dpo": {}}}
    return AlignmentJobSpec.model_validate(rows | fields)


def test_fields_for_clusters_are_named_where_they_are_set() -> None:
    assert unused_here(spec()) == []
    template = {"spec": {"nodeSelector": {"zone": "a"}}}
    job = spec(
        image="registry/trainer:1",
        credentials=[{"secretName": "hf-token"}],
        readyDeadlineSeconds=60,
        roles={"policy": {"cpu": "4", "podTemplate": template}, "reference": {"replicas": 2, "memory": "8Gi"}},
    )
    assert unused_here(job) == [
        "spec.image",
        "spec.credentials",
        "spec.readyDeadlineSeconds",
        "spec.roles.policy.podTemplate",
        "spec.roles.policy.cpu",
    ]
