"""Polls of real HTTP servers on loopback addresses: a pod's address is its own, its port always the same."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from tests.unit.operator.faults import running, until

from alignment_api.contract.roles import PORT
from alignment_operator.kube import poll
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
ADDRESSES = {
    "good": "127.77.0.1",
    "words": "127.77.0.2",
    "endless": "127.77.0.3",
    "silent": "127.77.0.4",
    "neighbour": "127.77.0.5",
    "nobody": "127.77.0.9",
}
WHO = {"uid": "job-uid", "role": "policy", "index": 0, "life": 1}
SILENT_SECONDS = 60


def training(step: int, **who: object) -> str:
    progress = {"step": step, "totalSteps": 9}
    return json.dumps({**WHO, **who, "state": "training", "ready": True, "progress": progress})


def pod(address: str, uid: str = "u1", **changes: object) -> SeenPod:
    return SeenPod(replace(VIEW, uid=uid, **changes), KEY, "job-uid", "node", address)  # type: ignore[arg-type]


class Pods:
    """HTTP servers as pods, each at an address of its own: what they answer, and who was asked how often."""

    def __init__(self) -> None:
        self.answers = {
            "good": training(7),
            "words": "<html>busy</html>",
            "endless": "x" * 100_000,
            "neighbour": training(8, uid="another-job"),
        }
        self.asked: Counter[str] = Counter()

    def app(self, name: str) -> web.Application:
        async def status(_: web.Request) -> web.Response:
            self.asked[name] += 1
            if name == "silent":
                await asyncio.sleep(SILENT_SECONDS)
            return web.Response(text=self.answers[name])

        made = web.Application()
        made.add_routes([web.get("/status", status)])
        return made


@pytest.fixture
async def pods() -> AsyncIterator[Pods]:
    made = Pods()
    runners = [web.AppRunner(made.app(name), shutdown_timeout=0.1) for name in ADDRESSES if name != "nobody"]
    for name, runner in zip(ADDRESSES, runners, strict=False):
        await runner.setup()
        await web.TCPSite(runner, ADDRESSES[name], PORT).start()
    yield made
    for runner in runners:
        await runner.cleanup()


@asynccontextmanager
async def polling(*seen: SeenPod, told: list[JobKey] | None = None) -> AsyncIterator[StatusPoller]:
    """A poller of these pods."""
    client = KubeClient(Configuration(host="http://127.0.0.1:1"), in_cluster=True)
    poller = StatusPoller(client, lambda: seen, [].append if told is None else told.append)
    try:
        async with running(poller.run()):
            yield poller
    finally:
        await client.close()


def step(poller: StatusPoller, of: SeenPod) -> int | None:
    status = poller.status(of)
    return None if status is None or status.progress is None else status.progress.step


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVERY_SECONDS", "TICK_SECONDS", "AFTER_SILENCE_SECONDS"):
        monkeypatch.setattr(poll, name, 0.01)


async def test_a_leading_pod_tells_its_progress_and_each_step_is_told_once(
    pods: Pods, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll, "STEPS_SECONDS", 0.0)
    told: list[JobKey] = []
    lead = pod(ADDRESSES["good"])
    async with polling(lead, told=told) as poller:
        await until(lambda: pods.asked["good"] >= 5)
        assert step(poller, lead) == 7
        assert told == [KEY]
        pods.answers["good"] = training(8)
        await until(lambda: step(poller, lead) == 8)
        assert told == [KEY, KEY]
        pods.answers["good"] = "no status"
        asked = pods.asked["good"]
        await until(lambda: pods.asked["good"] >= asked + 3)
        assert (step(poller, lead), told) == (8, [KEY, KEY]), "its last word stands"


async def test_a_step_alone_asks_for_a_pass_now_and_then_and_a_checkpoint_at_once(pods: Pods, quick: None) -> None:
    told: list[JobKey] = []
    lead = pod(ADDRESSES["good"])
    async with polling(lead, told=told) as poller:
        await until(lambda: told == [KEY])
        pods.answers["good"] = training(8)
        await until(lambda: step(poller, lead) == 8)
        assert told == [KEY]
        pods.answers["good"] = training(8, checkpoint={"step": 8, "verifiedAt": "2026-11-24T02:00:00Z"})
        await until(lambda: told == [KEY, KEY])


async def test_a_pod_is_asked_again_and_again_and_a_silent_one_rarely(
    pods: Pods, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(poll, "AFTER_SILENCE_SECONDS", 3600.0)
    strange = [pod(ADDRESSES[name], uid=name) for name in ("words", "endless", "silent", "nobody")]
    async with polling(*strange, pod(ADDRESSES["good"])) as poller:
        await until(lambda: pods.asked["good"] >= 5 and len(pods.asked) == 4)
        assert all(poller.status(one) is None for one in strange)
    assert [pods.asked[name] for name in ("words", "endless", "silent")] == [1, 1, 1]


async def test_an_answer_of_another_job_or_another_life_is_not_this_pods(pods: Pods) -> None:
    reused, older = pod(ADDRESSES["neighbour"]), pod(ADDRESSES["good"], uid="u2", life=2)
    told: list[JobKey] = []
    async with polling(reused, older, told=told) as poller:
        await until(lambda: pods.asked["neighbour"] and pods.asked["good"])
        await asyncio.sleep(0.2)
        assert (poller.status(reused), poller.status(older), told) == (None, None, [])


@pytest.mark.parametrize("changes", [{"role": "reference"}, {"index": 1}, {"phase": "Pending"}, {"phase": "Failed"}])
async def test_only_the_leading_running_pod_is_asked(changes: dict[str, object], pods: Pods) -> None:
    other, lead = pod(ADDRESSES["good"], uid="u2", **changes), pod(ADDRESSES["words"])
    async with polling(other, pod("", uid="without an address"), lead) as poller:
        await until(lambda: pods.asked["words"] == 1)
        assert poller.status(other) is None
    assert pods.asked.keys() == {"words"}
