"""The pod of a role instance. The files in golden/ are what a reviewer reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.unit.operator.pods import PLATFORM, instance_of, pod_of
from tests.unit.operator.small_cluster import MODEL, make_job, ppo_spec

from alignment_api.contract.context import Context, Pins
from alignment_api.contract.platform import Platform, Pool, Pools
from alignment_api.contract.status import AlignmentJobStatus, PrecisionReport
from alignment_api.derived.stages import stages_of
from alignment_operator.places import neighbours, read_sources, sources_of_role
from alignment_operator.resources import build_pod
from alignment_operator.resources.pod import SCRAPED, STAYS

GOLDEN = Path(__file__).parent / "golden"
SECRET = {"credentials": [{"secretName": "hf-token"}]}
BUCKET = {
    "model": {"source": "s3://models/base/"},
    "data": {"source": "s3://data/pairs.jsonl"},
    "storage": {"source": "s3://runs/helpful"},
    "output": {"destination": "s3://results/helpful"},
    "credentials": [{"secretName": "s3-keys"}],
}
GANG = {"roles": {"policy": {"replicas": 2, "gpus": 4, "cpu": "16", "memory": "256Gi"}}}


def context_of(pod: dict[str, Any]) -> Context:
    (text,) = [entry["value"] for entry in pod["spec"]["containers"][0]["env"] if entry["name"] == "ALIGNMENT_CONTEXT"]
    return Context.model_validate_json(text)


def assert_golden(name: str, manifest: dict[str, Any]) -> None:
    """A changed pod shows as a changed file: write the new one by hand or from the message, and review it."""
    text = (GOLDEN / name).read_text()
    expected = json.loads(json.dumps(YAML(typ="safe").load(text)))
    assert json.loads(json.dumps(manifest)) == expected


def test_the_pod_of_a_gang_is_as_reviewed() -> None:
    assert_golden("pod-policy.yaml", pod_of(GANG | SECRET, "policy"))


def test_the_pod_of_a_gated_server_is_as_reviewed() -> None:
    assert_golden("pod-reference.yaml", pod_of(SECRET, "reference"))


def test_the_pod_of_a_job_in_buckets_is_as_reviewed() -> None:
    assert_golden("pod-policy-buckets.yaml", pod_of(BUCKET, "policy"))


def test_the_pod_of_a_rollout_server_is_as_reviewed() -> None:
    assert_golden("pod-rollout.yaml", pod_of(ppo_spec(), "rollout"))


def test_pods_of_a_gang_join_its_pod_group_where_the_platform_says_so() -> None:
    grouped = PLATFORM.model_copy(update={"gang": "podGroup"})
    names = {
        pod_of(ppo_spec(), role, grouped)["spec"]["schedulingGroup"]["podGroupName"] for role in ("actor", "critic")
    }
    assert names == {"helpful-gang-2-jje2z"}  # the attempt after that of the reward model
    for spec, role, platform in (
        (ppo_spec(), "actor", PLATFORM),  # not configured
        (ppo_spec(), "rollout", grouped),  # frozen: each comes and goes by itself
        ({}, "policy", grouped),  # one pod is a gang by itself
    ):
        assert "schedulingGroup" not in pod_of(spec, role, platform)["spec"]


def test_memory_holds_two_versions_of_the_weights_on_their_way() -> None:
    def shared_and_limit(role: str) -> tuple[str, str]:
        spec = pod_of(ppo_spec() | {"training": {"precision": "fp32"}}, role, Platform())["spec"]
        (shm,) = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm"]
        return shm["sizeLimit"], spec["containers"][0]["resources"]["limits"]["memory"]

    # 1,000,000 parameters, 4 bytes, twice: 1 GiB when rounded up; a process of 1 and its state, a trainee's 1 more;
    # of vLLM 3, with keys and values 4
    assert shared_and_limit("actor") == (f"{3 * 1024 // 4 + 1024}Mi", "3Gi")
    assert shared_and_limit("rollout") == (f"{6 * 1024 // 4 + 1024}Mi", "6Gi")
    assert shared_and_limit("critic") == (f"{2 * 1024 // 4}Mi", "2Gi")


def test_whatever_rewards_read_is_mounted_and_never_written() -> None:
    rewards = [
        {"train": {"preferences": {"source": "pvc://judged/pairs.jsonl"}, "model": {"source": "pvc://bases/small"}}},
        {"model": {"source": "pvc://judges/toxicity"}},
        {"function": {"python": {"entrypoint": "mine:score", "path": "pvc://code/rewards"}}},
    ]
    pod = pod_of({"algorithm": {"grpo": {"rewards": rewards}}}, "prepare")
    mounts = {m["mountPath"]: m.get("readOnly") for m in pod["spec"]["containers"][0]["volumeMounts"]}
    assert {mounts[f"/volumes/{claim}"] for claim in ("judged", "bases", "judges", "code")} == {True}
    assert context_of(pod).sources["pvc://code/rewards"] == "/volumes/code/rewards"


def mounted(pod: dict[str, Any]) -> dict[str, str]:
    """Path below /volumes -> what it is mounted for."""
    mounts = pod["spec"]["containers"][0]["volumeMounts"]
    ours = [mount for mount in mounts if mount["mountPath"].startswith("/volumes/")]
    return {m["mountPath"].removeprefix("/volumes/"): "read" if m["readOnly"] else "write" for m in ours}


TRAINED = {"train": {"preferences": {"source": "pvc://judged/pairs.jsonl"}, "model": {"source": "pvc://bases/small"}}}
JUDGE = {"model": {"source": "pvc://judges/toxicity"}}
CODE = {"function": {"python": {"entrypoint": "mine:score", "path": "pvc://code/rewards"}}}
PPO = {"algorithm": {"ppo": {"rewards": [TRAINED, JUDGE, CODE]}}}


@pytest.mark.parametrize(
    ("spec", "role", "expected"),
    [
        ({}, "prepare", {"models": "read", "data": "read", "work": "write", "results": "write"}),
        ({}, "reference", {"models": "read"}),
        ({}, "policy", {"models": "read", "work": "write", "results": "write"}),
        ({}, "evaluator", {"work": "read", "results": "write"}),
        (BUCKET, "prepare", {}),
        (BUCKET, "reference", {}),
        (BUCKET, "evaluator", {}),
        (PPO, "evaluator", {"models": "read", "code": "read", "work": "read", "results": "write"}),
        (PPO, "rollout", {"models": "read"}),
        (PPO, "reference", {"models": "read"}),
        (PPO, "reward", {"models": "read", "judges": "read", "work/helpful/reward/model": "read"}),
        (PPO, "actor", {"models": "read", "code": "read", "work": "write", "results": "write"}),
        (
            PPO | {"roles": {"critic": {"placement": "withActor"}}},
            "actor",
            {"models": "read", "judges": "read", "code": "read", "work": "write", "results": "write"},
        ),
        (PPO, "critic", {"models": "read", "judges": "read", "work": "write"}),
        (PPO, "policy", {"models": "read", "bases": "read", "work": "write"}),  # its reward model stays in storage
    ],
)
def test_a_pod_mounts_what_its_role_reads_or_writes_and_nothing_else(
    spec: dict[str, Any], role: str, expected: dict[str, str]
) -> None:
    pod = pod_of(spec, role)
    assert mounted(pod) == expected
    claims = {v["name"]: v["persistentVolumeClaim"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v}
    assert {claim["claimName"] for claim in claims.values()} == {path.partition("/")[0] for path in expected}


def test_every_source_of_a_manifest_is_read_by_some_role() -> None:
    everything = {
        **PPO,
        "data": {"source": "pvc://data/p.jsonl", "evaluation": {"source": "pvc://data/e.jsonl"}},
        "checkpoint": {"resumeFrom": "pvc://old/run"},
    }
    job = make_job(everything)
    assert set(context_of(pod_of(PPO, "prepare")).sources) == set(read_sources(make_job(PPO)).values())
    assert set(sources_of_role(job, "prepare")) == set(read_sources(job).values())


def test_a_server_is_told_what_it_cannot_read() -> None:
    pins = {
        "model": MODEL,
        "precision": PrecisionReport(value="fp32", why="the CPU"),
        "reward_models": {"toxicity": MODEL},
    }
    job = make_job(PPO).model_copy(update={"status": AlignmentJobStatus(**pins)})
    assert context_of(build_pod(job, instance_of(PPO, "reward"), PLATFORM)).pins == Pins(**pins)
    assert context_of(pod_of({}, "policy")).pins is None  # it reads the manifest in storage
    assert context_of(pod_of({}, "reference")).pins is None  # it asks prepare, which is at work
    assert context_of(pod_of({}, "reference")).peers == {"prepare": ("http://helpful-prepare-jje2z:8000",)}


def test_pods_that_share_a_volume_of_one_node_run_on_one() -> None:
    def beside(role: str, single: tuple[str, ...]) -> list[str] | None:
        job, instance = make_job(PPO), instance_of(PPO, role)
        stage = next(stage for stage in stages_of(job.spec) if stage.name == instance.stage)
        near = neighbours(job, PLATFORM, stage, single).get(role, ())
        affinity = build_pod(job, replace(instance, beside=near), PLATFORM)["spec"].get("affinity")
        if affinity is None:
            return None
        (term,) = affinity["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        labels = {"alignment.run/uid": "uid-1", "alignment.run/stage": instance.stage}
        assert term["labelSelector"]["matchLabels"] == labels
        (among,) = term["labelSelector"]["matchExpressions"]
        return list(among["values"])

    assert beside("actor", ()) is None
    assert beside("actor", ("results",)) is None  # nobody else mounts it
    assert beside("actor", ("work",)) == ["actor", "critic", "reward"]
    assert beside("rollout", ("work",)) is None
    assert beside("critic", ("judges",)) == ["critic", "reward"]
    assert beside("actor", ("judges", "work")) == ["actor", "critic", "reward"]
    assert beside("rollout", ("work", "models")) == ["actor", "critic", "reference", "reward", "rollout"]


def test_disk_is_asked_for_and_limited_where_it_is_known() -> None:
    def disk(spec: dict[str, Any], role: str, platform: Platform = PLATFORM) -> tuple[str, str | None, str | None]:
        pod = pod_of(spec, role, platform)["spec"]
        resources = pod["containers"][0]["resources"]
        (tmp,) = [volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "tmp"]
        limit = resources["limits"].get("ephemeral-storage")
        assert tmp.get("sizeLimit") == limit
        return resources["requests"]["ephemeral-storage"], limit, tmp.get("sizeLimit")

    hub = {"model": {"source": "hf://org/tiny"}}
    assert disk({}, "reference")[:2] == ("4Gi", "4Gi")
    assert disk({}, "policy")[:2] == ("10Gi", "10Gi")  # on GPUs
    assert disk(hub, "prepare")[:2] == ("4Gi", None)  # nobody has counted its parameters yet
    assert disk(hub, "policy")[:2] == ("11Gi", "11Gi")  # 1,000,000 parameters, 4 bytes: 1 GiB when rounded up
    bucket = {"output": {"destination": "s3://results/helpful"}}
    assert disk(bucket, "prepare")[:2] == ("4Gi", "4Gi")
    assert disk(bucket, "policy")[:2] == ("11Gi", "11Gi")  # on its way there
    assert disk(bucket, "evaluator")[:2] == ("5Gi", "5Gi")  # and back
    copied = BUCKET | {"storage": {"source": "pvc://work/helpful"}}
    assert disk(copied, "policy")[:2] == ("11Gi", "11Gi")  # 2,000,000 parameters with the model as it came
    own = {"roles": {"policy": {"ephemeralStorage": "50Gi"}}}
    assert disk(own, "policy")[:2] == ("50Gi", "50Gi")


def test_a_pod_has_room_for_its_copy_of_what_lies_in_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has counted the rows, so that nothing is limited; a checkpoint is three times a model in fp32."""
    monkeypatch.setattr("alignment_operator.plan.disk.GIB", 4_000_000)  # a million parameters in fp32
    storage = {"storage": {"source": "s3://runs/helpful"}}

    def disk(role: str, **more: Any) -> tuple[str, str | None]:
        resources = pod_of(storage | more, role)["spec"]["containers"][0]["resources"]
        return resources["requests"]["ephemeral-storage"], resources["limits"].get("ephemeral-storage")

    assert disk("prepare") == ("4Gi", None)
    assert disk("policy") == ("13Gi", None)
    assert disk("policy", training={"lora": {"rank": 1, "targets": ["q_proj"]}}) == ("11Gi", None)
    assert disk("evaluator") == ("4Gi", None)
    assert disk("reference") == ("4Gi", "4Gi")


def test_a_trainee_says_that_it_must_not_be_moved_and_a_server_may_be() -> None:
    stays = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    assert stays.items() <= pod_of({}, "policy")["metadata"]["annotations"].items()
    assert not stays.keys() & pod_of({}, "reference")["metadata"]["annotations"].keys()


def test_a_pool_may_limit_the_cpu_of_its_pods() -> None:
    limited = Platform(pools=Pools(spot=Pool(limit_cpu=True)))
    assert pod_of({}, "reference", limited)["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "1"


def test_the_same_input_gives_the_same_pod_and_is_not_changed() -> None:
    job = make_job({"roles": {"policy": {"podTemplate": {"spec": {"containers": [{"name": "trainer", "env": []}]}}}}})
    instance = instance_of({}, "policy")
    before = job.model_dump_json()
    assert build_pod(job, instance, PLATFORM) == build_pod(job, instance, PLATFORM)
    assert job.model_dump_json() == before


def test_a_process_learns_where_everything_is() -> None:
    context = context_of(pod_of(GANG, "policy"))
    assert context.sources == {
        "pvc://models/base": "/volumes/models/base",
    }
    assert (context.storage, context.output) == ("/volumes/work/helpful", "/volumes/results/helpful")
    assert (context.replicas, context.processes, context.gpus, context.notice_seconds) == (2, 4, 4, 120)


def test_a_server_is_not_told_where_a_storage_in_a_bucket_is() -> None:
    assert context_of(pod_of(BUCKET, "reference")).storage is None
    assert context_of(pod_of(BUCKET, "evaluator")).storage == "s3://runs/helpful"


def test_a_gangs_rendezvous_is_its_first_pods_own_name() -> None:
    pod = pod_of(GANG, "policy")
    host = f"{pod['spec']['hostname']}.{pod['spec']['subdomain']}:29500"
    assert context_of(pod).rendezvous == host
    assert pod["spec"]["hostname"] == pod["metadata"]["name"]


def test_a_claim_that_is_read_and_written_is_mounted_once() -> None:
    spec = {"model": {"source": "pvc://work/base"}, "output": {"destination": "pvc://work/out"}}
    mounts = pod_of(spec, "policy")["spec"]["containers"][0]["volumeMounts"]
    assert [m["readOnly"] for m in mounts if m["mountPath"] == "/volumes/work"] == [False]


def with_pool_template(template: dict[str, Any]) -> Platform:
    spot = PLATFORM.pools.spot.model_copy(update={"pod_template": template})
    return PLATFORM.model_copy(update={"pools": PLATFORM.pools.model_copy(update={"spot": spot})})


def test_a_roles_pod_template_cannot_undo_its_pools() -> None:
    def template(tag: str) -> dict[str, Any]:
        container = {"name": "trainer", "env": [{"name": tag, "value": tag}, {"name": "BOTH", "value": tag}]}
        return {"spec": {"containers": [container], "runtimeClassName": tag}}

    job = make_job({"roles": {"reference": {"podTemplate": template("role")}}})
    instance = instance_of({}, "reference")
    role_only = build_pod(job, instance, PLATFORM)["spec"]
    assert role_only["runtimeClassName"] == "role"
    both = build_pod(job, instance, with_pool_template(template("pool")))["spec"]
    env = {entry["name"]: entry.get("value") for entry in both["containers"][0]["env"]}
    assert (both["runtimeClassName"], env["role"], env["pool"], env["BOTH"]) == ("pool", "role", "pool", "pool")
    assert both["containers"][0]["readinessProbe"]["httpGet"]["path"] == "/healthz"
    nulls = {"spec": {"runtimeClassName": None, "securityContext": None}}
    undoing = make_job({"roles": {"reference": {"podTemplate": nulls}}})
    assert build_pod(undoing, instance, with_pool_template(template("pool")))["spec"]["runtimeClassName"] == "pool"


def test_tolerations_are_added_to_those_of_the_pool_and_of_lost_nodes() -> None:
    mine = {"key": "team", "operator": "Equal", "value": "a", "effect": "NoSchedule"}
    template = {"spec": {"tolerations": [mine]}}
    before = pod_of({}, "policy")["spec"]["tolerations"]
    after = pod_of({"roles": {"policy": {"podTemplate": template}}}, "policy")["spec"]["tolerations"]
    assert after == [*before, mine]
    assert {"key": "gpu", "operator": "Exists"} in after


def test_a_pod_template_cannot_replace_what_a_process_is_told_by() -> None:
    template = {
        "metadata": {"annotations": {"prometheus.io/port": "22"}},
        "spec": {
            "containers": [
                {
                    "name": "trainer",
                    "volumeMounts": [
                        {"name": "mine", "mountPath": "/etc/alignment-token", "subPath": "x"},
                        {"name": "mine", "mountPath": "/mine"},
                    ],
                }
            ],
            "volumes": [
                {"name": "token", "emptyDir": {}},
                {"name": "job", "persistentVolumeClaim": {"claimName": "unchecked"}},
                {"name": "claim-0", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {"sizeLimit": "1Ti"}},
                {"name": "mine", "persistentVolumeClaim": {"claimName": "mine"}},
            ],
        },
    }
    built, patched = pod_of({}, "policy"), pod_of({"roles": {"policy": {"podTemplate": template}}}, "policy")
    volumes = {volume["name"]: volume for volume in patched["spec"]["volumes"]}
    own = {volume["name"]: volume for volume in built["spec"]["volumes"]}
    assert {name: volumes[name] for name in own if name != "tmp"} == {n: v for n, v in own.items() if n != "tmp"}
    assert volumes["tmp"]["emptyDir"] == {"sizeLimit": "1Ti"}
    mounts = patched["spec"]["containers"][0]["volumeMounts"]
    assert [m for m in mounts if m["mountPath"] != "/mine"] == built["spec"]["containers"][0]["volumeMounts"]
    assert patched["metadata"]["annotations"] == built["metadata"]["annotations"]


def test_a_pod_template_cannot_change_who_a_pod_is() -> None:
    instance = replace(instance_of({}, "policy"), gated=True)
    template = {
        "kind": "Deployment",
        "metadata": {
            "name": "mine",
            "namespace": "kube-system",
            "labels": {"alignment.run/role": "evaluator", "team": "a"},
            "ownerReferences": None,
            "annotations": {"note": "kept"},
        },
        "spec": {
            "nodeName": "spot-1",
            "nodeSelector": {"pool": "spot", "zone": "b"},
            "restartPolicy": "Always",
            "schedulingGates": [],
            "schedulingGroup": {"podGroupName": "another"},
            "containers": [
                {
                    "name": "trainer",
                    "terminationMessagePath": "/elsewhere",
                    "env": [
                        {"name": "ALIGNMENT_CONTEXT", "value": "{}"},
                        {"name": "ALIGNMENT_ADDRESS", "value": "10.6.6.6"},
                        {"name": "MINE", "value": "1"},
                    ],
                }
            ],
        },
    }
    built = build_pod(make_job(), instance, PLATFORM)
    patched = build_pod(make_job({"roles": {"policy": {"podTemplate": template}}}), instance, PLATFORM)
    assert patched["kind"] == "Pod"
    for key in ("name", "namespace", "ownerReferences"):
        assert patched["metadata"][key] == built["metadata"][key]
    assert patched["metadata"]["labels"] == built["metadata"]["labels"] | {"team": "a"}
    assert patched["metadata"]["annotations"] == SCRAPED | STAYS | {"note": "kept"}
    assert "nodeName" not in patched["spec"]
    assert patched["spec"]["nodeSelector"] == {"pool": "on-demand", "zone": "b"}
    assert patched["spec"]["restartPolicy"] == "Never"
    assert "schedulingGroup" not in patched["spec"]
    assert patched["spec"]["schedulingGates"] == [{"name": "alignment.run/roles-ready"}]
    container = patched["spec"]["containers"][0]
    assert container["terminationMessagePath"] == "/dev/termination-log"
    assert context_of(patched).role == "policy"
    assert {"name": "MINE", "value": "1"} in container["env"]
    own_address = {"fieldRef": {"fieldPath": "status.podIP"}}
    assert {"name": "ALIGNMENT_ADDRESS", "valueFrom": own_address} in container["env"]


def test_a_pod_on_cpus_asks_for_no_gpu() -> None:
    resources = pod_of({}, "reference")["spec"]["containers"][0]["resources"]
    held = {"memory": "6Gi", "ephemeral-storage": "4Gi"}
    assert resources == {"requests": {"cpu": "1", **held}, "limits": held}
