"""A podTemplate merges as the Kubernetes API's own strategic merge does."""

from __future__ import annotations

from copy import deepcopy

from alignment_operator.resources.patch import merge


def test_mappings_merge_and_null_removes() -> None:
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "d": None}) == {"a": {"b": 4, "c": 2}}


def test_named_lists_merge_by_their_key() -> None:
    base = {"containers": [{"name": "trainer", "image": "a", "volumeMounts": [{"mountPath": "/x", "name": "x"}]}]}
    patch = {
        "containers": [
            {"name": "trainer", "image": "b", "volumeMounts": [{"mountPath": "/y", "name": "y"}]},
            {"name": "sidecar", "image": "c"},
        ]
    }
    assert merge(base, patch) == {
        "containers": [
            {
                "name": "trainer",
                "image": "b",
                "volumeMounts": [{"mountPath": "/x", "name": "x"}, {"mountPath": "/y", "name": "y"}],
            },
            {"name": "sidecar", "image": "c"},
        ]
    }


def test_a_volume_of_the_same_name_is_replaced_not_mixed() -> None:
    base = {"volumes": [{"name": "tmp", "emptyDir": {}}]}
    assert merge(base, {"volumes": [{"name": "tmp", "hostPath": {"path": "/fast"}}]}) == {
        "volumes": [{"name": "tmp", "hostPath": {"path": "/fast"}}]
    }


def test_other_lists_are_replaced() -> None:
    assert merge({"command": ["a"], "args": ["b"]}, {"command": ["c", "d"]}) == {"command": ["c", "d"], "args": ["b"]}


def test_neither_side_is_changed() -> None:
    base = {"containers": [{"name": "t", "env": [{"name": "A", "value": "1"}]}]}
    patch = {"containers": [{"name": "t", "env": [{"name": "B", "value": "2"}]}]}
    before = deepcopy((base, patch))
    merged = merge(base, patch)
    merged["containers"][0]["env"].append({"name": "C"})
    assert (base, patch) == before
