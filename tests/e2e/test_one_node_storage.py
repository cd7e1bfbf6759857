"""A team without rights to the cluster, on volumes that stay on a node: the chart's values as they come."""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e.jobs import Jobs, PodHistory, condition, dpo_job, make_inputs, ppo_job
from tests.rig import Rig, image_values, install_chart, trainer_pod_template
from tests.rig.control_plane import NODE_STORAGE_CLASS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2400)]

NAMESPACE = "one-node"
ROWS = 400
"""Of which the PPO job holds out 200 to judge its reward model."""


@pytest.fixture(scope="module")
def jobs(rig: Rig, work: object) -> Jobs:
    """Jobs of a namespace with an operator of its own, beside the one of the cluster (`work`)."""
    rig.kubectl("create", "namespace", NAMESPACE)
    make_inputs(rig, ROWS, NAMESPACE, "ReadWriteOnce")
    values = image_values() | {"watchNamespaces": [NAMESPACE]}
    values |= {part: {"install": False} for part in ("crd", "userRoles", "admissionPolicy")}
    values["platform"] |= {
        "pools": {pool: {"podTemplate": trainer_pod_template()} for pool in ("onDemand", "spot")},
        "storage": {"storageClassName": NODE_STORAGE_CLASS},  # instead of another default class for the whole rig
    }
    install_chart(rig, "team", f"{NAMESPACE}-system", values)
    return Jobs(rig, NAMESPACE)


def on_defaults(job: dict[str, Any], steps: int) -> dict[str, Any]:
    """The job in that namespace, with the platform's storage and output."""
    job["metadata"]["namespace"] = NAMESPACE
    del job["spec"]["storage"], job["spec"]["output"]
    job["spec"]["training"]["maxSteps"] = steps
    job["spec"]["checkpoint"] = {"everySteps": steps}
    return job


@pytest.mark.parametrize(
    ("job", "roles"),
    [
        (on_defaults(dpo_job("dpo"), 20), {"prepare", "reference", "policy", "evaluator"}),
        (
            on_defaults(ppo_job("ppo"), 2),
            {"prepare", "policy", "actor", "critic", "reference", "reward", "rollout", "evaluator"},
        ),
    ],
    ids=["dpo", "ppo"],
)
def test_a_job_runs_where_volumes_are_of_one_node(job: dict[str, Any], roles: set[str], jobs: Jobs) -> None:
    name = job["metadata"]["name"]
    with jobs.watching(name) as history:
        jobs.apply(job)
        status = jobs.wait_complete(name)
    assert _nodes(history) == {role: {"ondemand-0"} for role in roles}
    assert history.doubled() == []
    assert condition(status, "PoolsAvailable") == "Unknown", "it may not list nodes"
    made = jobs.rig.get("pvc", "-n", NAMESPACE)["items"]
    claims = {claim["metadata"]["name"].rpartition("-")[0]: claim["spec"] for claim in made}
    for claim in (claims[f"{name}-storage"], claims[f"{name}-output"]):
        assert claim["accessModes"] == ["ReadWriteOnce"]
        assert jobs.rig.get("pv", claim["volumeName"])["spec"]["nodeAffinity"], "another node could not mount it"


def _nodes(history: PodHistory) -> dict[str, set[str]]:
    roles = {life.role for life in history.lives.values()}
    return {role: {life.node for life in history.of(role)} for role in roles}
