"""The operator put together, before an apiserver that is late, forbids or forgets. On a real one: tests/cluster."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from tests.unit.operator.faults import Manifest, answering, listing, refused, running, stream, until

from alignment_operator.kube import kind, operator
from alignment_operator.kube.operator import Operator
from alignment_operator.kube.platform import PlatformSource
from alignment_operator.kube.telemetry import Telemetry
from alignment_operator.plan.types import JobKey

KEY = JobKey("team", "dpo")
JOBS = "/apis/alignment.run/v1alpha1"
TEAM_PODS = "/api/v1/namespaces/team/pods"
JOB = f"{JOBS}/namespaces/team/alignmentjobs/dpo"


class Apiserver:
    """Lists nothing, unless a test says what; notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        """Path -> closed while a list of it is not answered."""
        self.forbidden: set[str] = set()
        self.serves_jobs = True
        self.jobs: list[Manifest] = []

    async def serve(self, request: web.Request) -> Any:
        path = request.path
        self.asked.append(path)
        if path in self.forbidden:
            return refused(403, "Forbidden")
        if "watch" in request.query:
            return await stream(request, then=asyncio.sleep(3600))
        if path in self.gates:
            await self.gates[path].wait()
        if path == "/apis":
            return web.json_response({"groups": [{"name": "alignment.run"}] if self.serves_jobs else []})
        if path == JOBS:
            return web.json_response({"resources": [{"name": "alignmentjobs"}]})
        if path.startswith(f"{JOBS}/") and path.endswith("/alignmentjobs") and self.serves_jobs:
            return listing(*self.jobs)
        return listing() if path in ("/api/v1/pods", TEAM_PODS, "/api/v1/nodes") else refused(404, "NotFound")


@asynccontextmanager
async def operating(apiserver: Apiserver, namespace: str | None = None) -> AsyncIterator[tuple[Operator, Telemetry]]:
    telemetry = Telemetry()
    async with answering(apiserver.serve) as client:
        made = Operator(client, PlatformSource("/nowhere", client, telemetry), telemetry, namespace, "me")
        async with running(made.run()):
            yield made, telemetry


@pytest.mark.parametrize("late", ["/api/v1/pods", "/api/v1/nodes"])
async def test_no_pass_begins_before_every_mirror_is_whole(late: str) -> None:
    apiserver = Apiserver()
    apiserver.gates[late] = asyncio.Event()
    async with operating(apiserver) as (made, _):
        made.job_changed(KEY, "1", gone=False)
        (early,) = {"/api/v1/pods", "/api/v1/nodes"} - {late}
        await until(lambda: apiserver.asked.count(early) == 2)  # listed, and watched
        await asyncio.sleep(0.05)
        assert JOB not in apiserver.asked
        assert f"{late} is not mirrored yet" in (made.problem() or "")
        apiserver.gates[late].set()
        await until(lambda: JOB in apiserver.asked)


async def test_a_mirror_that_is_refused_keeps_the_operator_unready_and_it_says_which() -> None:
    apiserver = Apiserver()
    apiserver.forbidden.add("/api/v1/nodes")
    async with operating(apiserver) as (made, _):
        await until(lambda: "403 Forbidden" in (made.problem() or ""))
        assert "/api/v1/nodes is not mirrored yet" in (made.problem() or "")
        apiserver.forbidden.clear()
        await made.ready()
        assert made.problem() is None


async def test_an_operator_of_one_namespace_works_without_a_list_of_nodes() -> None:
    apiserver = Apiserver()
    apiserver.forbidden.add("/api/v1/nodes")
    async with operating(apiserver, "team") as (made, _):
        made.job_changed(KEY, "1", gone=False)
        async with asyncio.timeout(10):
            await made.ready()
        assert made.problem() is None
        await until(lambda: JOB in apiserver.asked)
        assert not made.nodes.whole


async def test_an_operator_of_one_namespace_is_unready_while_its_pods_are_forbidden() -> None:
    apiserver = Apiserver()
    apiserver.forbidden.add(TEAM_PODS)
    async with operating(apiserver, "team") as (made, _):
        await until(lambda: "403 Forbidden" in (made.problem() or ""))
        assert f"{TEAM_PODS} is not mirrored yet" in (made.problem() or "")


async def test_jobs_that_are_not_served_yet_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kind, "EVERY_SECONDS", 0.01)
    apiserver = Apiserver()
    apiserver.serves_jobs = False
    async with operating(apiserver) as (made, _):
        waiting = asyncio.create_task(made.ready())
        await until(lambda: apiserver.asked.count("/apis") >= 5)
        assert made.problem() == (
            "the apiserver serves no alignmentjobs of alignment.run/v1alpha1 yet; "
            "apply crds/alignmentjobs.alignment.run.yaml, as the chart does"
        )
        assert not waiting.done()
        assert len([record for record in caplog.records if record.message == "waiting for AlignmentJobs"]) == 1
        apiserver.serves_jobs = True
        await waiting
        assert made.problem() is None


async def test_a_job_whose_end_nobody_told_of_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "SWEEP_SECONDS", 0.05)
    apiserver = Apiserver()
    apiserver.jobs = [{"metadata": {"namespace": KEY.namespace, "name": KEY.name}}]
    async with operating(apiserver) as (made, _):
        made.job_changed(KEY, "1", gone=False)
        await until(lambda: apiserver.asked.count(JOB) >= 2)
        apiserver.jobs = []
        await sweeps(apiserver, 3)
        looks = apiserver.asked.count(JOB)
        await sweeps(apiserver, 3)
        assert apiserver.asked.count(JOB) == looks


async def sweeps(apiserver: Apiserver, number: int) -> None:
    """Waits for so many."""
    lists = apiserver.asked.count(f"{JOBS}/alignmentjobs")
    await until(lambda: apiserver.asked.count(f"{JOBS}/alignmentjobs") >= lists + number)


async def test_a_job_of_which_nobody_told_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "SWEEP_SECONDS", 0.05)
    apiserver = Apiserver()
    apiserver.jobs = [{"metadata": {"namespace": KEY.namespace, "name": KEY.name}}]
    async with operating(apiserver):
        await until(lambda: apiserver.asked.count(JOB) >= 2)


async def test_a_lost_right_to_act_ends_every_pass_at_once() -> None:
    apiserver = Apiserver()
    apiserver.gates[JOB] = asyncio.Event()
    async with operating(apiserver) as (made, telemetry):
        made.job_changed(KEY, "1", gone=False)
        await until(lambda: JOB in apiserver.asked)
        made.halt()
        await until(lambda: b'reconcile_seconds_count{result="error"} 1.0' in telemetry.text())
        made.look_at(KEY)
        apiserver.gates[JOB].set()
        await asyncio.sleep(0.05)
        assert apiserver.asked.count(JOB) == 1
