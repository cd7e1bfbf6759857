"""What a job keeps of the platform from its admission on: a changed platform changes nothing of a job that runs."""

from __future__ import annotations

from typing import Any

from tests.unit.operator.small_cluster import SmallCluster, make_job

from alignment_api.contract.platform import Gpu, Platform, PlatformOutput, PlatformStorage, Pool, Pools
from alignment_api.contract.status import AlignmentJobStatus
from alignment_operator.resources import build_objects, build_pod

SHARED = PlatformStorage(access_mode="ReadWriteMany")
OLD = Platform(image="trainer:1", pools=Pools(spot=Pool(notice_seconds=30)), storage=SHARED)
NEW = Platform(
    image="trainer:2",
    pools=Pools(on_demand=Pool(gpu=Gpu(product="H100-SXM5", memory_gib=80)), spot=Pool(notice_seconds=60)),
    output=PlatformOutput(destination="pvc://models-out/jobs"),
    gang="podGroup",
    ingress_from=({"namespaceSelector": {}},),
)


def upgraded(stage: str) -> SmallCluster:
    """A job that meets another platform once that stage runs."""
    cluster = SmallCluster(make_job({"output": None, "roles": {"policy": {"replicas": 2}}}), OLD)
    cluster.run_until(stage)
    cluster.platform = NEW
    return cluster


def pods_of(cluster: SmallCluster) -> dict[str, dict[str, Any]]:
    """What the next pass makes."""
    plan = cluster.reconcile()
    platform = cluster.platform.as_pinned(cluster.status.platform)
    return {instance.role: build_pod(cluster.job, instance, platform) for instance in plan.create}


def test_a_replaced_server_has_the_image_and_the_notice_of_its_peers() -> None:
    cluster = upgraded("prepare")
    cluster.vanish(cluster.pod("reference").name)
    spec = pods_of(cluster)["reference"]["spec"]
    assert spec["containers"][0]["image"] == "trainer:1"
    assert spec["terminationGracePeriodSeconds"] == 30


def test_a_second_attempt_asks_for_what_the_first_had() -> None:
    cluster = upgraded("train")
    for pod in cluster.names("policy"):
        cluster.vanish(pod)
    policy = pods_of(cluster)["policy"]["spec"]
    assert "nvidia.com/gpu" not in policy["containers"][0]["resources"]["requests"]
    assert "schedulingGroup" not in policy


def test_the_model_stays_where_the_job_began_to_put_it() -> None:
    cluster = upgraded("train")
    before = cluster.status.artifacts
    cluster.run_until("evaluate")
    assert cluster.status.artifacts.model == "pvc://helpful-output-jje2z/model"
    assert cluster.status.artifacts.storage == before.storage


def test_who_is_let_in_is_the_platforms_to_say_at_any_time() -> None:
    cluster = upgraded("train")
    plan = cluster.reconcile()
    assert plan.support is not None
    platform = cluster.platform.as_pinned(cluster.status.platform)
    (policy,) = [o for o in build_objects(cluster.job, plan.support, platform) if o["kind"] == "NetworkPolicy"]
    assert len(policy["spec"]["ingress"]) == 2


def test_a_platform_that_has_not_changed_is_itself() -> None:
    assert NEW.as_pinned(NEW.pinned()) is NEW
    assert NEW.as_pinned(None) is NEW
    assert NEW.as_pinned(OLD.pinned()).image == "trainer:1"


def test_what_is_pinned_survives_its_way_through_the_status() -> None:
    removes = {"spec": {"securityContext": None}}
    platform = Platform(pools=Pools(spot=Pool(pod_template=removes, tolerations=({"key": "a"},))))
    status = AlignmentJobStatus(platform=platform.pinned())
    text = status.model_dump_json(by_alias=True, exclude_none=True)
    again = AlignmentJobStatus.model_validate_json(text, strict=True, by_name=False)
    assert again.platform == platform.pinned()
