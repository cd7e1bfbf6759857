"""What a newer operator hands to pods of an older release."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.operator.small_cluster import make_job, ppo_spec

from alignment_api.contract.handed import DEFAULTS
from alignment_api.yaml.manifest import InvalidManifest, read_begun_manifest
from alignment_operator.resources.objects import job_as_read


def handed(**spec: Any) -> dict[str, Any]:
    """A job as this release hands it to its pods."""
    job: dict[str, Any] = json.loads(job_as_read(make_job(spec)).model_dump_json(exclude_none=True, exclude={"status"}))
    return job


def newer(job: dict[str, Any], *path: str | int, value: Any, is_default: bool) -> str:
    """The same as a release would that has one field more."""
    parent: Any = job
    for part in path[:-1]:
        parent = parent[part]
    parent[path[-1]] = value
    if is_default:
        defaults = [*json.loads(job["metadata"]["annotations"][DEFAULTS]), path]
        job["metadata"]["annotations"][DEFAULTS] = json.dumps(defaults)
    return json.dumps(job)


FIELDS: list[tuple[tuple[str | int, ...], Any]] = [
    (("spec", "training", "optimizer"), "adamw"),
    (("spec", "spotFallback"), {"afterSeconds": 600}),
    (("spec", "algorithm", "ppo", "rewards", 1, "function", "cached"), True),
]


@pytest.mark.parametrize(("path", "value"), FIELDS)
def test_a_default_that_an_older_trainer_does_not_know_is_left_out(path: tuple[str | int, ...], value: Any) -> None:
    job = handed(**ppo_spec())
    before = read_begun_manifest(json.dumps(job)).spec
    assert read_begun_manifest(newer(job, *path, value=value, is_default=True)).spec == before


@pytest.mark.parametrize(("path", "value"), FIELDS)
def test_what_somebody_wrote_is_never_left_out(path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(InvalidManifest, match=rf"{path[-1]}: unknown field"):
        read_begun_manifest(newer(handed(**ppo_spec()), *path, value=value, is_default=False))


def test_a_limit_that_is_turned_off_is_handed_on() -> None:
    spec = ppo_spec()
    spec["algorithm"]["ppo"] |= {"targetKl": 0, "maxUpdateKl": 0}
    options = read_begun_manifest(json.dumps(handed(**spec))).spec.algorithm.ppo
    assert options is not None
    assert (options.target_kl, options.max_update_kl) == (0, 0)


def test_what_differs_from_its_default_is_not_told_as_one() -> None:
    job = handed(training={"epochs": 3, "batchSize": 64}, roles={"policy": {"memory": "8Gi"}})
    defaults = json.loads(job["metadata"]["annotations"][DEFAULTS])
    assert ["spec", "training", "batchSize"] in defaults
    assert ["spec", "training", "epochs"] not in defaults
    assert ["spec", "training"] not in defaults
    assert ["spec", "roles", "policy", "memory"] not in defaults
    assert ["spec", "roles", "critic"] in defaults
