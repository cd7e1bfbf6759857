"""A podTemplate of the wrong shape is told by its field, and never leaves a traceback."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from alignment_api.contract.base import field_path
from alignment_api.contract.platform import Pool
from alignment_api.contract.pod_template import template_problems


def told(template: Any) -> list[str]:
    return [f"{field_path(path)}: {message}" for path, message in template_problems(template)]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            {"spec": {"containers": [{"image": "x"}]}},
            "spec.containers[0]: has no `name`, by which entries",
        ),
        ({"spec": {"containers": [{"image": "x"}]}}, "that of the job's own container is `trainer`"),
        ({"spec": {"containers": {"name": "trainer"}}}, "spec.containers: found fields below it; write a list"),
        ({"spec": {"containers": None}}, "spec.containers: found nothing; write a list"),
        ({"spec": {"containers": [None]}}, "spec.containers[0]: found nothing"),
        ({"spec": None}, "spec: found nothing; write its fields, indented below it, or remove the line"),
        ({"metadata": None}, "metadata: found nothing"),
        ({"metadata": {"annotations": None}}, "metadata.annotations: found nothing"),
        ({"metadata": {"labels": ["a"]}}, "metadata.labels: found a list"),
        ({"metadata": {"labels": {"year": 2026}}}, "metadata.labels.year: found `2026` (a whole number); write a text"),
        ({"spec": {"containers": [{"name": "trainer", "env": [{"value": "1"}]}]}}, "env[0]: has no `name`"),
        ({"spec": {"containers": [{"name": "trainer", "ports": [{"name": "x"}]}]}}, "has no `containerPort`"),
        ({"spec": {"containers": [{"name": "trainer", "volumeMounts": [{"name": "x"}]}]}}, "has no `mountPath`"),
        ({"spec": {"tolerationz": []}}, "spec.tolerationz: unknown field. Did you mean `tolerations`?"),
        ({"spec": {"tolerations": None}}, "spec.tolerations: found nothing; write a list"),
        ({"spec": {"volumes": [{"name": "v", "hostpath": {}}]}}, "Did you mean `hostPath`?"),
        ({"kind": "Pod"}, "kind: unknown field. Known here: `metadata`, `spec`"),
        ({"metadata": {"name": "mine"}}, "metadata.name: unknown field. Known here: `labels`, `annotations`"),
        ({"spec": {"hostNetwork": "yes"}}, 'spec.hostNetwork: found `"yes"` (a text); write `true` or `false`'),
        ({"spec": {"priority": True}}, "spec.priority: found `true`; write a whole number"),
        ([], "found a list; write its fields"),
    ],
)
def test_a_template_of_the_wrong_shape_is_told_by_its_field(template: Any, words: str) -> None:
    assert any(words in problem for problem in told(template)), told(template)


def test_a_sound_template_has_no_problem_and_null_removes_a_field() -> None:
    template = {
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": None}},
        "spec": {
            "securityContext": None,
            "tolerations": [{"key": "gpu", "operator": "Exists", "tolerationSeconds": 5}],
            "containers": [
                {"name": "trainer", "env": [{"name": "A", "value": "1"}], "resources": {"limits": {"cpu": 4}}},
                {"name": "side", "image": "s", "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": True}]},
            ],
            "volumes": [{"name": "v", "emptyDir": {}}],
        },
    }
    assert told(template) == []


def test_a_pools_template_is_checked_where_the_platform_is_read() -> None:
    with pytest.raises(ValidationError, match=r"podTemplate.spec.containers\[0\]: has no `name`"):
        Pool.model_validate({"podTemplate": {"spec": {"containers": [{"image": "x"}]}}})
