"""What is refused before anything is created, and in which words."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.unit.operator.small_cluster import MODEL, START, SmallCluster, make_job, ppo_spec

from alignment_api.contract.platform import Gpu, Platform, PlatformOutput, PlatformStorage, Pool, Pools
from alignment_api.contract.policy import Policy
from alignment_operator.plan.admission import refusals
from alignment_operator.plan.make_plan import make_plan
from alignment_operator.plan.types import Observed, VolumeView

H100 = Gpu(product="H100-SXM5", memory_gib=80)
WITH_GPUS = Platform(pools=Pools(on_demand=Pool(gpu=H100), spot=Pool(gpu=H100, notice_seconds=30), cpu=Pool()))


def admit(spec: dict[str, Any], platform: Platform | None = None, **volumes: tuple[str, ...]) -> tuple[str, ...]:
    """The refusals of a job; every claim it may name exists unless its access modes are given as empty."""
    modes = dict.fromkeys(("models", "data", "work", "results"), ("ReadWriteMany",)) | volumes
    found = {claim: VolumeView(mode) for claim, mode in modes.items() if mode}
    return refusals(Observed(make_job(spec), platform or Platform(), volumes=found))


def test_a_sound_job_is_admitted() -> None:
    assert admit({}) == ()
    assert admit({"roles": {"policy": {"gpus": 4}}}, WITH_GPUS) == ()


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"model": {"source": "pvc://gone/m"}}, "spec.model.source"),
        ({"data": {"source": "pvc://gone/d"}}, "spec.data.source"),
        (
            {"data": {"source": "pvc://data/d", "evaluation": {"source": "pvc://gone/e"}}},
            "spec.data.evaluation.source",
        ),
        ({"storage": {"source": "pvc://gone"}}, "spec.storage.source"),
        ({"output": {"destination": "pvc://gone/out"}}, "spec.output.destination"),
        ({"checkpoint": {"resumeFrom": "pvc://gone/old"}}, "spec.checkpoint.resumeFrom"),
    ],
)
def test_a_claim_that_does_not_exist_is_refused_by_its_field(spec: dict[str, Any], field: str) -> None:
    assert admit(spec) == (
        f"{field}: no claim `gone` in namespace team; create that PersistentVolumeClaim or name one that exists",
    )


def test_a_job_in_buckets_needs_no_claim_of_its_own() -> None:
    named = {"model": {"source": "s3://models/base"}, "data": {"source": "s3://data/pairs"}}
    spec = named | {"output": {"destination": "s3://results/helpful"}}
    assert admit(spec, models=(), data=(), results=()) == ()


def test_the_platforms_output_is_checked_too() -> None:
    job = make_job()
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"output": None})})
    platform = Platform(output=PlatformOutput(destination="pvc://gone/models"))
    volumes = dict.fromkeys(("models", "data", "work"), VolumeView(("ReadWriteMany",)))
    (refusal,) = refusals(Observed(job, platform, volumes=volumes))
    assert refusal.startswith("platform output.destination: no claim `gone`")


def test_a_refused_job_creates_nothing_and_is_looked_at_again() -> None:
    cluster = SmallCluster(make_job({"data": {"source": "pvc://gone/d"}}))
    plan = cluster.reconcile()
    assert (plan.create, plan.support, plan.next_look) == ((), None, timedelta(seconds=5))
    condition = cluster.condition("Admitted")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "Refused")
    assert cluster.status.phase == "Pending"
    assert cluster.plan().status == cluster.status


@pytest.mark.parametrize(("refused_for", "expected"), [(0, 5), (8, 5), (60, 30), (239, 119.5), (86400, 120)])
def test_a_refused_job_is_looked_at_ever_less_often(refused_for: float, expected: float) -> None:
    cluster = SmallCluster(make_job({"data": {"source": "pvc://gone/d"}}))
    cluster.reconcile()
    cluster.wait(refused_for)
    assert cluster.reconcile().next_look == timedelta(seconds=expected)


def test_a_job_starts_once_its_claim_appears() -> None:
    observed = Observed(make_job(), Platform())
    refused = make_plan(observed, START)
    job = observed.job.model_copy(update={"status": refused.status})
    volumes = dict.fromkeys(("models", "data", "work", "results"), VolumeView(("ReadWriteMany",)))
    plan = make_plan(replace(observed, job=job, volumes=volumes), START)
    assert len(plan.create) == 2
    assert next(c.status for c in plan.status.conditions if c.type == "Admitted") == "True"


def test_a_running_job_is_not_refused_when_the_platform_changes() -> None:
    cluster = SmallCluster(make_job({"roles": {"policy": {"processes": 2}}}))
    cluster.run_until("prepare")
    cluster.platform = WITH_GPUS
    cluster.reconcile()
    admitted = cluster.condition("Admitted")
    assert admitted is not None
    assert admitted.status == "True"


def test_a_gang_on_several_nodes_needs_volumes_that_they_all_can_mount() -> None:
    gang = {"roles": {"policy": {"replicas": 2}}}
    (refusal,) = admit(gang, work=("ReadWriteOnce",))
    assert refusal == (
        "spec.storage.source: claim `work` is ReadWriteOnce, which one node alone can mount, and "
        "spec.roles.policy.replicas is 2; name a claim with access mode ReadWriteMany, "
        "or write replicas: 1 and more gpus"
    )
    assert admit(gang, models=("ReadOnlyMany",)) == ()
    assert admit({}, work=("ReadWriteOnce",)) == ()


def test_a_gang_needs_a_shared_volume_of_the_platform_where_it_names_none() -> None:
    job = make_job({"roles": {"policy": {"replicas": 2}}})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"storage": None})})
    volumes = dict.fromkeys(("models", "data", "results"), VolumeView(("ReadWriteMany",)))
    (refusal,) = refusals(Observed(job, Platform(), volumes=volumes))
    assert refusal.startswith("platform storage.accessMode is ReadWriteOnce")
    shared = Platform(storage=PlatformStorage(access_mode="ReadWriteMany"))
    assert refusals(Observed(job, shared, volumes=volumes)) == ()


APART = Platform(pools=Pools(on_demand=Pool(node_selector={"pool": "a"}), spot=Pool(node_selector={"pool": "b"})))


def test_a_volume_of_one_node_serves_roles_that_can_share_a_node() -> None:
    assert admit({}, models=("ReadWriteOnce",), data=("ReadWriteOnce",), work=("ReadWriteOnce",)) == ()
    assert admit(ppo_spec(), models=("ReadWriteOnce",), work=("ReadWriteOnce",), results=("ReadWriteOnce",)) == ()
    # across stages a volume moves: its pods never live together
    assert admit({}, APART, data=("ReadWriteOnce",), work=("ReadWriteOnce",), results=("ReadWriteOnce",)) == ()


def test_a_volume_of_one_node_is_refused_for_roles_that_share_none() -> None:
    (refusal,) = admit({}, APART, models=("ReadWriteOnce",))
    assert refusal == (
        "spec.model.source: claim `models` is ReadWriteOnce, which one node alone can mount, and stage prepare needs "
        "it in role prepare on pool cpu and in role reference on pool spot, which share no node; name a claim with "
        "access mode ReadOnlyMany or ReadWriteMany, or put both roles on one pool by their placement"
    )
    assert admit({"roles": {"reference": {"placement": "onDemand"}}}, APART, models=("ReadWriteOnce",)) == ()
    assert admit({}, APART, models=("ReadOnlyMany",)) == ()
    (refusal,) = admit(ppo_spec(), APART, work=("ReadWriteOnce",))
    assert "stage train needs it in role actor on pool onDemand and in role reward on pool spot" in refusal
    assert "name a claim with access mode ReadWriteMany, or put" in refusal


def test_a_volume_that_may_only_be_read_is_refused_for_what_is_written() -> None:
    assert admit({}, work=("ReadOnlyMany",)) == (
        "spec.storage.source: claim `work` is ReadOnlyMany, and role prepare writes there; "
        "name a claim with ReadWriteOnce or ReadWriteMany",
    )
    assert len(admit({}, results=("ReadOnlyMany",))) == 1


def test_a_volume_of_one_pod_is_refused_where_two_need_it() -> None:
    (refusal,) = admit({}, models=("ReadWriteOncePod",))
    assert "which one pod alone can mount, and 2 pods of stage prepare need it" in refusal
    assert admit({}, work=("ReadWriteOncePod",), results=("ReadWriteOncePod",)) == ()


def test_the_default_platform_needs_no_volume_that_several_nodes_can_mount() -> None:
    for spec in ({}, ppo_spec()):
        cluster = SmallCluster(make_job(spec | {"storage": None, "output": None}))
        plan = cluster.reconcile()
        assert plan.create
        assert cluster.status.single_node_claims == ("helpful-output-jje2z", "helpful-storage-jje2z")


def test_folders_inside_pods_are_no_place_for_results() -> None:
    (refusal,) = admit({"storage": {"source": "file:///scratch"}})
    assert refusal == (
        "spec.storage.source: `file:///scratch` is a folder inside a pod and is lost with it; write pvc://claim/path"
    )
    assert len(admit({"output": {"destination": "file:///out"}})) == 1


def test_a_path_beside_the_manifest_means_nothing_on_a_cluster() -> None:
    (refusal,) = admit({"data": {"source": "file://./pairs.jsonl"}})
    assert refusal.startswith("spec.data.source: `file://./pairs.jsonl` is relative to a manifest")
    assert admit({"data": {"source": "file:///mounted/pairs.jsonl"}}) == ()


def test_a_laptop_takes_files_and_has_no_claims() -> None:
    files = {
        "model": {"source": "file:///m"},
        "data": {"source": "file:///d.jsonl"},
        "storage": {"source": "file:///run"},
        "output": {"destination": "file:///run"},
        "roles": {"policy": {"replicas": 2}},
    }
    assert refusals(Observed(make_job(files), Platform(), own_files=True)) == ()
    job = make_job(files)
    bare = job.model_copy(update={"spec": job.spec.model_copy(update={"storage": None, "output": None})})
    one_node = Platform(storage=PlatformStorage(access_mode="ReadWriteOnce"))
    assert refusals(Observed(bare, one_node, own_files=True)) == ()
    (refusal,) = refusals(Observed(make_job(files | {"model": {"source": "pvc://m/x"}}), Platform(), own_files=True))
    assert refusal == (
        "spec.model.source: `pvc://m/x` is a claim of a cluster, which a laptop does not have; write file:///path"
    )


@pytest.mark.parametrize(
    ("platform", "role", "expected"),
    [
        (
            Platform(),
            {"policy": {"gpus": 2}},
            "spec.roles.policy.gpus: 2, but pool onDemand has no GPUs; write `processes: 2` for CPU processes, "
            "or choose a placement with GPUs",
        ),
        (
            WITH_GPUS,
            {"reference": {"processes": 2}},
            "spec.roles.reference.processes: 2, but pool spot has GPUs (H100-SXM5); write `gpus: 2`: "
            "one process runs on each",
        ),
    ],
)
def test_devices_must_be_those_of_the_pool(platform: Platform, role: dict[str, Any], expected: str) -> None:
    assert admit({"roles": role}, platform) == (expected,)


def test_one_rank_alone_needs_no_sharding_and_several_need_it() -> None:
    spec = {"training": {"sharding": "none"}, "roles": {"policy": {"processes": 2}}}
    assert admit(spec) == (
        "spec.training.sharding: `none` takes one rank, and role policy has 2 (replicas x gpus or processes); "
        "write sharding: fsdp2, or ask for one rank",
    )
    assert admit({"training": {"sharding": "none"}}) == ()


def test_every_rank_needs_a_sequence() -> None:
    spec = {"training": {"batchSize": 3}, "roles": {"policy": {"processes": 2, "replicas": 2}}}
    assert admit(spec) == (
        "spec.training.batchSize: 3 sequences a step cannot feed 4 ranks of policy; write at least 4, "
        "or ask for fewer ranks",
    )


def test_a_model_that_cannot_fit_fails_before_a_gpu_is_touched() -> None:
    cluster = SmallCluster(make_job({"roles": {"policy": {"gpus": 1}}}), WITH_GPUS)
    cluster.run_until("prepare")
    name = cluster.pod("prepare").name
    cluster.succeed(name)
    outcome = cluster.pods[name].outcome
    assert outcome is not None
    seven_billion = MODEL.model_copy(update={"parameters": 7_000_000_000})
    cluster.change(name, outcome=outcome.model_copy(update={"model": seven_billion}))
    plan = cluster.reconcile()
    failed = cluster.condition("Failed")
    assert failed is not None
    # 16 bytes x 7e9, and 2 of each weight in a layer (0.54e9 are in the embedding of a usual one) = 116.3 GiB
    assert failed.message == (
        "does not fit: policy needs 116.3 GiB a pod for 7,000,000,000 parameters, it has 1 x 80 GiB (H100-SXM5); "
        "smallest change that fits: roles.policy.gpus: 2"
    )
    assert plan.create == ()
    assert cluster.status.attempt == 0


def with_template(template: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {"roles": {"policy": {"podTemplate": template}}, **spec}


def of_trainer(**fields: Any) -> dict[str, Any]:
    return with_template({"spec": {"containers": [{"name": "trainer", **fields}]}})


def of_pod(**fields: Any) -> dict[str, Any]:
    return with_template({"spec": fields})


NOT_LET = "the platform lets no job set this; its policy.podTemplate allows metadata.labels, "
SNEAKY = {"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/trainer": "unconfined"}}}


@pytest.mark.parametrize(
    ("spec", "field", "words"),
    [
        (of_pod(containers=[{"image": "x"}]), "spec.containers[0]", "has no `name`"),
        (of_pod(containers=None), "spec.containers", "found nothing; write a list"),
        (of_pod(hostNetwork=True), "spec.hostNetwork", NOT_LET),
        (of_pod(hostPID=True), "spec.hostPID", NOT_LET),
        (of_pod(serviceAccountName="admin"), "spec.serviceAccountName", NOT_LET),
        (of_pod(nodeSelector={"a": "b"}), "spec.nodeSelector", NOT_LET),
        (of_pod(priorityClassName="system-node-critical"), "spec.priorityClassName", NOT_LET),
        (of_trainer(securityContext={"privileged": True}), "spec.containers[0].securityContext", NOT_LET),
        (of_trainer(command=["sh"]), "spec.containers[0].command", NOT_LET),
        (of_pod(containers=[{"name": "side", "image": "evil/y"}]), "spec.containers[0]", NOT_LET),
        (of_pod(initContainers=[{"name": "first", "image": "evil/x"}]), "spec.initContainers", NOT_LET),
        (of_pod(volumes=[{"name": "host", "hostPath": {"path": "/"}}]), "spec.volumes[0].hostPath", NOT_LET),
        (of_pod(volumes=[{"name": "t", "projected": {"sources": []}}]), "spec.volumes[0].projected", NOT_LET),
        (of_pod(volumes=[{"name": "s", "secret": {"secretName": "x"}}]), "spec.volumes[0].secret", NOT_LET),
        (
            with_template(SNEAKY),
            "metadata.annotations.container.apparmor.security.beta.kubernetes.io/trainer",
            "weakens how the pod is confined; remove it",
        ),
    ],
)
def test_a_pod_template_that_the_platform_does_not_let_is_refused_by_its_field(
    spec: dict[str, Any], field: str, words: str
) -> None:
    (refusal,) = admit(spec)
    assert refusal.startswith(f"spec.roles.policy.podTemplate.{field}: {words}")


def test_what_the_default_policy_lets_is_admitted() -> None:
    template = {
        "metadata": {"labels": {"team": "a"}, "annotations": {"note": "b"}},
        "spec": {
            "affinity": {"podAntiAffinity": {}},
            "tolerations": [{"key": "team", "operator": "Exists"}],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
            "containers": [
                {
                    "name": "trainer",
                    "env": [{"name": "A", "value": "1"}],
                    "resources": {"limits": {"cpu": "4"}},
                    "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
                }
            ],
        },
    }
    assert admit(with_template(template)) == ()


def test_a_platform_says_which_images_secrets_and_fields_its_jobs_may_name() -> None:
    policy = Policy(images=("registry.example/*",), secrets=("hf-*",), pod_template=("spec.nodeSelector",))
    platform = Platform(policy=policy)
    reads_secret = {"name": "S", "valueFrom": {"secretKeyRef": {"name": "db", "key": "k"}}}
    spec = with_template(
        {"spec": {"nodeSelector": {"zone": "b"}, "containers": [{"name": "trainer", "env": [reads_secret]}]}},
        image="attacker.example/any:latest",
        credentials=[{"secretName": "hf-token"}, {"secretName": "other-team-db"}],
    )
    env = "spec.roles.policy.podTemplate.spec.containers[0].env"
    assert admit(spec, platform) == (
        "spec.image: the platform lets no job name image `attacker.example/any:latest`; "
        "its policy.images allows `registry.example/*`",
        "spec.credentials[1].secretName: the platform lets no job name Secret `other-team-db`; "
        "its policy.secrets allows `hf-*`",
        f"{env}: the platform lets no job set this; its policy.podTemplate allows spec.nodeSelector",
        f"{env}[0].valueFrom.secretKeyRef: the platform lets no job name Secret `db`; its policy.secrets allows `hf-*`",
    )
    assert admit({"image": "registry.example/trainer:2"}, platform) == ()
