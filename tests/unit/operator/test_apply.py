"""What an apiserver refuses stops nothing else, and is told in words that help."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from tests.unit.operator.small_cluster import START, SmallCluster, make_job, ppo_spec

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.status import AlignmentJobStatus, InstanceRecord
from alignment_operator import names
from alignment_operator.kube import refusals as module
from alignment_operator.kube.apply import Applier
from alignment_operator.kube.client import ApiError, KubeClient
from alignment_operator.kube.observe import see_pod
from alignment_operator.kube.reflector import Collection, Reflector
from alignment_operator.kube.refusals import Refusals
from alignment_operator.plan.types import Instance, Plan, Refusal, Removal, Support
from alignment_operator.reconcile import Conflict
from alignment_operator.resources.objects import build_service

QUOTA = 'persistentvolumeclaims "c" is forbidden: exceeded quota: q, requested: 1, used: 2, limited: 2'
SUPPORT = Support(1, True, True, ("reference",), (), gang=2)


@dataclass
class Faulty:
    """An apiserver that has next to nothing, takes everything, and answers as `faults` says."""

    faults: dict[str, tuple[int, str, str]]
    """`VERB plural` -> code, reason, message."""
    there: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """What it has all the same, by plural."""
    asked: list[str] = field(default_factory=list)
    """What it was asked for, as `VERB plural name`."""

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else {}
        plural, _, name = request.path.partition("/namespaces/team/")[2].partition("/")
        name = name or body.get("metadata", {}).get("name", "")
        self.asked.append(f"{request.method} {plural} {name}".strip())
        fault = self.faults.get(f"{request.method} {plural}")
        if fault is None and request.method == "DELETE" and body.get("dryRun"):
            fault = (404, "NotFound", "not found")
        one = next((found for found in self.there.get(plural, ()) if found["metadata"]["name"] == name), None)
        if fault is None and request.method == "GET" and name and one is None:
            fault = (404, "NotFound", "not found")
        if fault is not None:
            status = {"kind": "Status", "code": fault[0], "reason": fault[1], "message": fault[2]}
            return web.json_response(status, status=fault[0])
        listed = one or {"items": self.there.get(plural, [])}
        return web.json_response(listed if request.method == "GET" else body)

    def made(self) -> set[str]:
        """Plurals of what it was asked to make."""
        return {asked.split()[1] for asked in self.asked if asked.startswith("POST ")}


@asynccontextmanager
async def applying(**faults: tuple[int, str, str]) -> AsyncIterator[tuple[Applier, Faulty]]:
    """faults: VERB_plural=(code, reason, message)."""
    server = Faulty({what.replace("_", " "): fault for what, fault in faults.items()})
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    client = KubeClient(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"), in_cluster=False)
    try:
        mirror = Reflector(client, Collection("/pods", see_pod, lambda pod: pod.key), lambda key: None)
        yield Applier(client, mirror), server
    finally:
        await client.close()
        await runner.cleanup()


def bare_job() -> AlignmentJob:
    """A job that names neither storage nor output."""
    return make_job({"storage": None, "output": None})


def instances() -> tuple[Instance, ...]:
    """prepare and a reference server."""
    return SmallCluster(bare_job()).plan().create


def a_plan(**fields: Any) -> Plan:
    removals = (Removal("old", "uid-old"),)
    rest = {"support": SUPPORT, "create": instances(), "delete": removals, "release": ("gated",)} | fields
    return Plan(AlignmentJobStatus(), **rest)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ((403, "Forbidden", QUOTA), "QuotaExceeded"),
        ((400, "BadRequest", 'admission webhook "w" denied the request: no'), "WebhookDenied"),
        ((422, "Invalid", "Service is invalid: spec.x"), "Invalid"),
        ((404, "NotFound", "namespace not found"), "NotFound"),
        ((500, "InternalError", "failed calling webhook"), "InternalError"),
    ],
)
async def test_a_refused_object_stops_no_delete_no_release_and_no_other_create(
    fault: tuple[int, str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignment_operator.kube.support.REQUEST_SECONDS", 0.0)
    async with applying(POST_services=fault) as (applier, server):
        delay = await applier.apply(bare_job(), a_plan(), Platform())
    assert server.made() >= {"pods", "secrets", "configmaps", "persistentvolumeclaims", "networkpolicies"}
    assert sum(asked.startswith("POST pods") for asked in server.asked) == 2
    assert {"DELETE pods old", "PATCH pods gated"} <= set(server.asked)
    (refusal,) = applier.refused(bare_job()) or ()
    assert (refusal.reason, refusal.message) == (reason, fault[2])
    assert refusal.what.startswith("Service helpful-reference-")
    assert delay == timedelta(milliseconds=200)  # the next pass writes it into the status


async def test_a_pod_waits_for_what_it_mounts_and_no_other_does() -> None:
    async with applying(POST_persistentvolumeclaims=(403, "Forbidden", QUOTA)) as (applier, server):
        await applier.apply(bare_job(), a_plan(), Platform())
        made = [asked.split()[2] for asked in server.asked if asked.startswith("POST pods")]
        assert [name.rpartition("-")[0] for name in made] == ["helpful-reference-0-1"]  # prepare mounts the storage
        assert {"DELETE pods old", "PATCH pods gated"} <= set(server.asked)
        refused = applier.refused(bare_job()) or ()
        assert [refusal.reason for refusal in refused] == ["QuotaExceeded", "QuotaExceeded"]


async def test_a_refused_pod_is_tried_again_later_and_is_forgotten_when_nobody_wants_it() -> None:
    async with applying(POST_pods=(403, "Forbidden", "exceeded quota: gpus")) as (applier, server):
        await applier.apply(bare_job(), a_plan(), Platform())
        refused = applier.refused(bare_job()) or ()
        assert [refusal.what for refusal in refused] == sorted(f"Pod {instance.name}" for instance in instances())
        delay = await applier.apply(bare_job(), a_plan(delete=(), release=()), Platform())
        assert delay is not None
        assert timedelta(seconds=1) < delay <= timedelta(seconds=2)
        assert sum(asked.startswith("POST pods") for asked in server.asked) == 2  # not again so soon
        assert applier.refused(bare_job()) == refused
        assert await applier.apply(bare_job(), a_plan(create=()), Platform()) == timedelta(milliseconds=200)
        assert applier.refused(bare_job()) == ()
        assert await applier.apply(bare_job(), a_plan(create=()), Platform()) is None


async def test_a_platform_that_asks_for_pod_groups_which_are_not_served_is_told_so() -> None:
    async with applying(GET_podgroups=(404, "", "404 page not found")) as (applier, server):
        await applier.apply(bare_job(), a_plan(), Platform(gang="podGroup"))
        (refusal,) = applier.refused(bare_job()) or ()
        assert refusal.reason == "NotServed"
        assert "the platform's `gang: podGroup` asks for; turn it on (Kubernetes 1.37" in refusal.message
        assert refusal.message.endswith("or write `gang: none`")
        assert "pods" in server.made()
        await applier.apply(bare_job(), a_plan(), Platform())
        assert applier.refused(bare_job()) == ()


async def test_a_pod_that_has_changed_since_the_plan_is_not_deleted() -> None:
    async with applying(DELETE_pods=(409, "Conflict", "Precondition failed: ResourceVersion")) as (applier, server):
        with pytest.raises(Conflict, match="pod old has changed since the plan"):
            await applier.apply(bare_job(), a_plan(), Platform())
        assert "pods" in server.made()


def test_a_pod_that_runs_goes_at_the_version_that_was_seen_and_one_that_has_ended_at_any() -> None:
    """Its outcome has been read: what a kubelet still adds to it is no reason to look again."""
    cluster = SmallCluster(make_job(ppo_spec()))
    cluster.run_until("train")
    runs, ended = cluster.pod("actor").name, cluster.pod("reference").name
    cluster.change(runs, version="7")
    cluster.change(ended, version="8", phase="Failed", disrupted=True)
    cluster.respec(suspend=True)
    versions = {removal.name: removal.version for removal in cluster.plan().delete}
    assert (versions[runs], versions[ended]) == ("7", None)


async def test_a_template_that_cannot_be_built_is_told_and_stops_nothing_else() -> None:
    broken = make_job({"roles": {"prepare": {"podTemplate": {"spec": {"containers": [{"image": "x"}]}}}}})
    async with applying() as (applier, server):
        await applier.apply(broken, a_plan(), Platform())
        assert {"DELETE pods old", "PATCH pods gated"} <= set(server.asked)
        assert {"secrets", "configmaps"} <= server.made()
        (refusal,) = applier.refused(broken) or ()
    assert refusal.reason == "InvalidTemplate"
    assert refusal.message.startswith("spec.roles.prepare.podTemplate.spec.containers[0]: has no `name`")


async def test_a_refusal_backs_off_and_ends_when_it_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def refused_until(times: int) -> Callable[[], Awaitable[None]]:
        async def request() -> None:
            tries.append("")
            if len(tries) <= times:
                raise ApiError(403, "Forbidden", "no", "POST x")

        return request

    monkeypatch.setattr(module, "FIRST_BACKOFF_SECONDS", 0.0)
    refusals = Refusals()
    assert refusals.tell() is None
    for expected in (False, False, True):
        assert await refusals.attempt("Pod x", refused_until(2)) is expected
        refusals.settle()
    assert (refusals.tell(), refusals.pause()) == ((), None)
    monkeypatch.setattr(module, "FIRST_BACKOFF_SECONDS", 60.0)
    tries.clear()
    for _ in range(3):
        assert not await refusals.attempt("Pod x", refused_until(99))
    assert len(tries) == 1
    assert refusals.tell() == (Refusal("Pod x", "Forbidden", "no"),)


def test_a_refusal_stands_in_a_condition_until_it_is_over() -> None:
    cluster = SmallCluster()
    cluster.reconcile()
    assert cluster.condition("ObjectsCreated") is None  # nobody has asked yet
    for refused, expected in (
        ((Refusal("Pod a", "QuotaExceeded", "exceeded quota"),), ("False", "QuotaExceeded", "Pod a: exceeded quota")),
        ((), ("True", "Created", "")),
    ):
        cluster.refused = refused
        cluster.reconcile()
        condition = cluster.condition("ObjectsCreated")
        assert condition is not None
        assert (condition.status, condition.reason, condition.message) == expected


async def test_a_job_born_suspended_makes_nothing_and_asks_for_nothing() -> None:
    cluster = SmallCluster(make_job({"suspend": True, "storage": None, "output": None}))
    async with applying() as (applier, server):
        assert await applier.apply(cluster.job, cluster.reconcile(), Platform()) is None
        assert server.asked == []
    for _ in range(3):
        plan = cluster.reconcile()
        assert (plan.support, plan.create) == (None, ())
    cluster.respec(suspend=False)
    assert cluster.reconcile().support is not None


def of_attempt(kind: str, name: str, uid: str = "uid-1") -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "ownerReferences": [{"uid": uid}]}}


async def test_specs_and_pod_groups_of_attempts_that_are_over_go_and_no_others() -> None:
    job, support = bare_job(), replace(SUPPORT, attempt=3)
    spec, group = names.config_name(job, 3), names.pod_group_name(job, 3)
    async with applying() as (applier, server):
        server.there["configmaps"] = [of_attempt("ConfigMap", name) for name in ("spec-1", "spec-2", spec)]
        server.there["configmaps"].append(of_attempt("ConfigMap", "labelled-by-somebody", uid="another"))
        server.there["podgroups"] = [of_attempt("PodGroup", name) for name in ("gang-1", "gang-2", group)]
        await applier.apply(job, a_plan(create=(), delete=(), support=support), Platform(gang="podGroup"))
    deleted = {asked for asked in server.asked if asked.startswith("DELETE") and "secrets" not in asked}
    assert deleted == {
        "DELETE configmaps spec-1",
        "DELETE configmaps spec-2",
        "DELETE podgroups gang-1",
        "DELETE podgroups gang-2",
    }


async def test_what_a_server_may_mount_that_has_not_shown_itself_stays() -> None:
    unseen = InstanceRecord(role="reference", index=0, life=1)
    job = bare_job()
    job = job.model_copy(update={"status": job.status.model_copy(update={"instances": (unseen,)})})
    async with applying() as (applier, server):
        server.there["configmaps"] = [of_attempt("ConfigMap", "spec-1")]
        await applier.apply(job, a_plan(create=(), delete=()), Platform())
    assert not any(asked.startswith("DELETE configmaps") for asked in server.asked)


async def test_a_pod_of_our_name_that_cannot_be_read_is_not_the_jobs_and_is_told() -> None:
    """Its name is taken, and its labels are not such as we give."""
    name = instances()[0].name
    odd = {"metadata": {"name": name, "namespace": "team", "uid": "u", "labels": {"alignment.run/life": "once"}}}
    odd |= {"spec": {}}
    async with applying(POST_pods=(409, "AlreadyExists", f'pods "{name}" already exists')) as (applier, server):
        server.there["pods"] = [odd]
        await applier.apply(bare_job(), a_plan(create=instances()[:1], delete=(), release=()), Platform())
        (refusal,) = applier.refused(bare_job()) or ()
    assert (refusal.what, refusal.reason) == (f"Pod {name}", "NotOurs")
    assert refusal.message == "a pod of this name exists and is not this job's, so it is not used; remove it"
    assert not any(asked.startswith("DELETE pods") for asked in server.asked)


async def test_a_service_of_which_the_apiserver_leaves_out_what_is_false_has_not_drifted() -> None:
    job = bare_job()
    there = build_service(job, "reference")
    del there["spec"]["publishNotReadyAddresses"]
    async with applying() as (applier, server):
        server.there["services"] = [there]
        await applier.apply(job, a_plan(create=()), Platform())
        assert not any(asked.startswith("PATCH services") for asked in server.asked)
        there["spec"]["publishNotReadyAddresses"] = True
        await applier.apply(job, a_plan(create=(), support=replace(SUPPORT, attempt=2)), Platform())
        assert any(asked.startswith("PATCH services") for asked in server.asked)


async def test_an_object_that_could_not_be_mended_is_deleted_without_waiting_when_the_job_is_over() -> None:
    job = bare_job()
    job = job.model_copy(update={"status": job.status.model_copy(update={"started_at": START})})
    drifted = build_service(job, "reference") | {"spec": {}}
    async with applying(PATCH_services=(403, "Forbidden", "no")) as (applier, server):
        server.there["services"] = [drifted]
        await applier.apply(job, a_plan(create=()), Platform())
        (refusal,) = applier.refused(job) or ()
        assert refusal.what == f"Service {drifted['metadata']['name']}"
        await applier.apply(job, a_plan(support=None, create=()), Platform())
        assert f"DELETE services {drifted['metadata']['name']}" in server.asked
        assert applier.refused(job) == ()
