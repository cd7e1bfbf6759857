"""Polls of real HTTP servers on loopback addresses: a pod's address is its own, its port always the same."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration

from alignment_api.contract.roles import PORT
from alignment_operator.kube.client import KubeClient
from alignment_operator.kube.observe import SeenPod
from alignment_operator.kube.poll import StatusPoller
from alignment_operator.plan.types import JobKey, PodView

KEY = JobKey("team-a", "dpo")
VIEW = PodView(
    name="dpo-policy-0-1-abcde",
    uid="u1",
    role="policy",
    index=0,
    life=1,
    stage="train",
    phase="Running",
    created_at=datetime(2026, 11, 24, tzinfo=UTC),
)
ADDRESSES = {"good": "127.77.0.1", "words": "127.77.0.2", "endless": "127.77.0.3", "silent": "127.77.0.4"}
ANSWERS = {
    "good": '{"state": "training", "ready": true, "progress": {"step": 7, "totalSteps": 9}, "newer": 1}',
    "words": "<html>busy</html>",
    "endless": "x" * 100_000,
}
SILENT_SECONDS = 60


def pod(address: str, uid: str = "u1", **changes: object) -> SeenPod:
    return SeenPod(replace(VIEW, uid=uid, **changes), KEY, "job-uid", "node", address)  # type: ignore[arg-type]


@pytest.fixture
async def asked() -> AsyncIterator[list[str]]:
    """Starts the servers; collects whom they were asked as."""
    log: list[str] = []

    def app(name: str) -> web.Application:
        async def status(_: web.Request) -> web.Response:
            log.append(name)
            if name == "silent":
                await asyncio.sleep(SILENT_SECONDS)
            return web.Response(text=ANSWERS[name])

        made = web.Application()
        made.add_routes([web.get("/status", status)])
        return made

    runners = {name: web.AppRunner(app(name), shutdown_timeout=0.1) for name in ADDRESSES}
    for name, runner in runners.items():
        await runner.setup()
        await web.TCPSite(runner, ADDRESSES[name], PORT).start()
    yield log
    for runner in runners.values():
        await runner.cleanup()


@pytest.fixture
async def poller() -> AsyncIterator[StatusPoller]:
    client = KubeClient(Configuration(host="http://127.0.0.1:1"), in_cluster=True)
    yield StatusPoller(client)
    await client.close()


async def test_a_leading_pod_tells_its_progress_and_is_not_asked_twice_at_once(
    asked: list[str], poller: StatusPoller
) -> None:
    for _ in range(3):
        statuses = await poller.statuses(KEY, [pod(ADDRESSES["good"])])
    assert asked == ["good"]
    progress = statuses["u1"].progress
    assert progress is not None
    assert (progress.step, progress.total_steps) == (7, 9)


async def test_a_pod_that_talks_nonsense_or_nothing_costs_one_short_timeout(
    asked: list[str], poller: StatusPoller
) -> None:
    start = asyncio.get_running_loop().time()
    strange = [pod(ADDRESSES[name], uid=name) for name in ("words", "endless", "silent")]
    assert await poller.statuses(KEY, [*strange, pod(ADDRESSES["good"]), pod("127.77.0.9", uid="nobody")]) != {}
    assert asyncio.get_running_loop().time() - start < SILENT_SECONDS, "nobody waited for the silent one"
    assert sorted(asked) == ["endless", "good", "silent", "words"]
    assert set(await poller.statuses(KEY, [*strange, pod(ADDRESSES["good"])])) == {"u1"}
    assert len(asked) == 4, "a silent pod is left alone for a while"


@pytest.mark.parametrize("changes", [{"role": "reference"}, {"index": 1}, {"phase": "Pending"}, {"phase": "Failed"}])
async def test_only_the_leading_running_pod_is_asked(
    changes: dict[str, object], asked: list[str], poller: StatusPoller
) -> None:
    assert await poller.statuses(KEY, [pod(ADDRESSES["good"], **changes), pod("", uid="without an address")]) == {}
    assert asked == []
