"""Nodes that a pod keeps away from, because they turned one like it away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.unit.operator.pods import PLATFORM, instance_of, pod_of
from tests.unit.operator.small_cluster import make_job, ppo_spec

from alignment_operator.kube.observe import see_pod
from alignment_operator.resources import build_pod

PPO = ppo_spec()
NOT_GPU_1 = {"key": "metadata.name", "operator": "NotIn", "values": ["gpu-1"]}
NOT_GPU_2 = {"key": "metadata.name", "operator": "NotIn", "values": ["gpu-2"]}


def node_terms(template: dict[str, Any], avoid: tuple[str, ...]) -> list[dict[str, Any]]:
    spec = {"roles": {"policy": {"podTemplate": {"spec": template}}}}
    instance = replace(instance_of(spec, "policy"), avoid=avoid)
    affinity = build_pod(make_job(spec), instance, PLATFORM)["spec"]["affinity"]
    assert affinity.get("podAffinity") == template.get("affinity", {}).get("podAffinity")
    terms: list[dict[str, Any]] = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    return terms


def test_a_pod_keeps_away_from_each_node_that_turned_one_away() -> None:
    assert node_terms({}, ("gpu-1", "gpu-2")) == [{"matchFields": [NOT_GPU_1, NOT_GPU_2]}]
    assert "affinity" not in pod_of({}, "policy")["spec"]


def test_it_keeps_away_in_every_alternative_of_a_pod_templates_affinity() -> None:
    zones = [{"matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}]} for zone in ("a", "b")]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": zones}}
    terms = node_terms({"affinity": {"nodeAffinity": required, "podAffinity": {}}}, ("gpu-1",))
    assert terms == [zone | {"matchFields": [NOT_GPU_1]} for zone in zones]


def test_it_keeps_away_and_stays_beside_those_with_whom_it_shares_a_volume() -> None:
    job, instance = make_job(PPO), instance_of(PPO, "critic")
    near = replace(instance, beside=("actor", "critic"))
    beside = build_pod(job, near, PLATFORM)["spec"]["affinity"]
    affinity = build_pod(job, replace(near, avoid=("gpu-1",)), PLATFORM)["spec"]["affinity"]
    assert affinity["podAffinity"] == beside["podAffinity"]
    (required,) = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert required == {"matchFields": [NOT_GPU_1]}


def test_what_a_pod_keeps_away_from_is_read_back_apart_from_what_its_template_says() -> None:
    other = {"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["theirs"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [other]}}
    spec = {"roles": {"policy": {"podTemplate": {"spec": {"affinity": {"nodeAffinity": required}}}}}}

    def avoids(*nodes: str) -> tuple[str, ...]:
        pod = build_pod(make_job(spec), replace(instance_of(spec, "policy"), avoid=nodes), PLATFORM)
        pod["metadata"] |= {"uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
        return see_pod(pod).view.avoids

    assert avoids() == ()
    assert avoids("gpu-1", "gpu-2") == ("gpu-1", "gpu-2")
