"""Pods as the planner and the builder make them, on a platform of three pools."""

from __future__ import annotations

from typing import Any

from tests.unit.operator.small_cluster import SmallCluster, make_job

from alignment_api.contract.platform import Gpu, Platform, Pool, Pools
from alignment_operator.plan.types import Instance
from alignment_operator.resources import build_pod

PLATFORM = Platform(
    pools=Pools(
        on_demand=Pool(
            node_selector={"pool": "on-demand"},
            tolerations=({"key": "gpu", "operator": "Exists"},),
            gpu=Gpu(product="H100-SXM5", memory_gib=80),
        ),
        spot=Pool(node_selector={"pool": "spot"}, notice_seconds=30),
        cpu=Pool(node_selector={"pool": "cpu"}),
    ),
    image="registry.example/trainer:1",
)


def instance_of(spec: dict[str, Any], role: str, platform: Platform = PLATFORM) -> Instance:
    """The instance that the planner itself makes."""
    cluster = SmallCluster(make_job(spec), platform)
    for _ in range(10):
        found = [instance for instance in cluster.reconcile().create if instance.role == role]
        if found:
            return found[0]
        cluster.do_well()
    raise AssertionError(f"no {role} was planned")


def pod_of(spec: dict[str, Any], role: str, platform: Platform = PLATFORM) -> dict[str, Any]:
    return build_pod(make_job(spec), instance_of(spec, role, platform), platform)
