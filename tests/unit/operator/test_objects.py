"""What pods lean on. The file in golden/ is what a reviewer reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from tests.unit.operator.small_cluster import SmallCluster, make_job

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform, PlatformStorage
from alignment_api.contract.status import AlignmentJobStatus, DataReport, ModelReport
from alignment_operator.names import output_claim, storage_claim
from alignment_operator.plan.types import Support
from alignment_operator.resources import build_objects, build_pod, build_token

GOLDEN = Path(__file__).parent / "golden"
PLATFORM = Platform(
    storage=PlatformStorage(storage_class_name="shared", access_mode="ReadWriteMany", size="50Gi"),
    ingress_from=({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "alignment"}}},),
)
SUPPORT = Support(
    attempt=2, makes_storage=True, makes_output=True, serving_roles=("reference",), gang_roles=("policy",)
)


def bare_job() -> AlignmentJob:
    """A job that names neither storage nor output."""
    job = make_job({"roles": {"policy": {"replicas": 2}}})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"storage": None, "output": None})})


def by_kind(objects: tuple[dict[str, Any], ...], kind: str) -> list[dict[str, Any]]:
    return [manifest for manifest in objects if manifest["kind"] == kind]


def test_the_objects_are_as_reviewed() -> None:
    objects = list(build_objects(bare_job(), SUPPORT, PLATFORM))
    for manifest in by_kind(tuple(objects), "ConfigMap"):
        manifest["data"] = sorted(manifest["data"])  # its content is another test's
    expected = list(YAML(typ="safe").load_all((GOLDEN / "objects.yaml").read_text()))
    assert json.loads(json.dumps(objects)) == json.loads(json.dumps(expected))


def test_the_job_passes_through_as_itself_with_its_defaults_learning_rate_and_pinned_revisions() -> None:
    status = AlignmentJobStatus(
        model=ModelReport(parameters=1, fingerprint="m", revision="abc"),
        data=DataReport(format="preferences", rows=1, evaluation_rows=1, fingerprint="d", revision="def"),
    )
    job = bare_job().model_copy(update={"status": status})
    (config,) = by_kind(build_objects(job, SUPPORT, PLATFORM), "ConfigMap")
    read = AlignmentJob.model_validate_json(config["data"]["job.yaml"], by_name=False)
    assert (read.spec.model.revision, read.spec.data.revision) == ("abc", "def")
    assert read.spec.training.learning_rate == 5e-7
    training = read.spec.training.model_copy(update={"learning_rate": None})
    as_written = {"model": job.spec.model, "data": job.spec.data, "training": training}
    assert read.spec.model_copy(update=as_written) == job.spec
    assert json.loads(config["data"]["job.yaml"])["spec"]["training"]["batchSize"] == 64
    assert read.status == AlignmentJobStatus()


def test_the_gang_of_an_attempt_is_as_reviewed() -> None:
    platform = PLATFORM.model_copy(update={"gang": "podGroup"})
    (group,) = by_kind(build_objects(bare_job(), replace(SUPPORT, gang=3), platform), "PodGroup")
    assert group == YAML(typ="safe").load((GOLDEN / "pod-group.yaml").read_text())
    for alone in (
        build_objects(bare_job(), SUPPORT, platform),
        build_objects(bare_job(), replace(SUPPORT, gang=1), platform),
    ):
        assert by_kind(alone, "PodGroup") == []
    assert by_kind(build_objects(bare_job(), replace(SUPPORT, gang=3), PLATFORM), "PodGroup") == []


def test_every_attempt_reads_a_config_map_of_its_own() -> None:
    supports = (Support(attempt, False, False, (), ()) for attempt in (1, 2))
    configs = [by_kind(build_objects(bare_job(), support, PLATFORM), "ConfigMap") for support in supports]
    names = {config["metadata"]["name"] for (config,) in configs}
    assert len(names) == 2


def test_storage_goes_with_the_job_and_its_output_stays() -> None:
    job = bare_job()
    owners = {
        manifest["metadata"]["name"]: "ownerReferences" in manifest["metadata"]
        for manifest in by_kind(build_objects(job, SUPPORT, PLATFORM), "PersistentVolumeClaim")
    }
    assert owners == {storage_claim(job): True, output_claim(job): False}


def test_named_volumes_are_not_made() -> None:
    objects = build_objects(make_job(), Support(1, False, False, (), ()), PLATFORM)
    assert by_kind(objects, "PersistentVolumeClaim") == []


def test_every_pod_finds_what_it_mounts_and_whom_it_calls() -> None:
    cluster = SmallCluster(bare_job(), PLATFORM)
    plan = cluster.reconcile()
    assert plan.support is not None
    objects = (*build_objects(cluster.job, plan.support, PLATFORM), build_token(cluster.job, "secret"))
    made = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in objects}
    for instance in plan.create:
        pod = build_pod(cluster.job, instance, PLATFORM)
        for volume in pod["spec"]["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in made
            if "secret" in volume:
                assert ("Secret", volume["secret"]["secretName"]) in made
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            assert claim in (None, "models", "data") or ("PersistentVolumeClaim", claim) in made
        labels = pod["metadata"]["labels"]
        selectors = [service["spec"]["selector"] for service in by_kind(objects, "Service")]
        if instance.role == "reference":
            assert any(selector.items() <= labels.items() for selector in selectors)


def test_the_token_is_the_callers() -> None:
    assert build_token(make_job(), "chosen")["stringData"] == {"token": "chosen"}
