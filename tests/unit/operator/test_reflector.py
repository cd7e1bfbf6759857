"""The mirror on bad days. What it does on a good one: tests/cluster/test_kube_runtime.py."""

import asyncio
from itertools import count
from typing import Any

import pytest
from aiohttp import web
from tests.unit.operator.faults import answering, listing, refused, running, stream, until

from alignment_operator.kube import reflector
from alignment_operator.kube.client import KubeClient
from alignment_operator.kube.nodes import see_node
from alignment_operator.kube.observe import see_pod
from alignment_operator.kube.reflector import Collection, Reflector

PODS, NODES = "/api/v1/pods", "/api/v1/nodes"
LABELS = {"job": "j", "uid": "u", "role": "policy", "index": "0", "life": "1", "stage": "train"}


def pod(name: str, version: str = "1", **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team", "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
    metadata |= {"resourceVersion": version}
    return {
        "metadata": metadata | {"labels": {f"alignment.run/{key}": value for key, value in (LABELS | labels).items()}},
        "spec": {},
        "status": {},
    }


def bookmark(version: str = "2") -> tuple[str, dict[str, Any]]:
    return "BOOKMARK", {"metadata": {"resourceVersion": version}}


def mirror_of_pods(client: KubeClient, told: list[object] | None = None) -> Reflector[Any, Any]:
    tell = (lambda key: None) if told is None else told.append
    return Reflector(client, Collection(PODS, see_pod, lambda seen: seen.key), tell)


@pytest.mark.parametrize(
    "labels", [{"index": ""}, {"life": ""}, {"index": "²"}, {"role": "mascot"}, {"stage": ""}, {"uid": ""}]
)
async def test_a_pod_that_cannot_be_read_is_left_out_and_all_others_are_seen(
    labels: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    async def apiserver(request: web.Request) -> Any:
        if "watch" not in request.query:
            return listing(pod("guest", **labels), pod("ours"))
        late = [("ADDED", pod("late", "3", **labels)), ("MODIFIED", pod("late", "4", **labels))]
        events = [*late, ("ADDED", pod("more", "5")), ("DELETED", pod("late", "6", **labels))]
        return await stream(request, *events, then=asyncio.sleep(3600))

    async with answering(apiserver) as client:
        mirror = mirror_of_pods(client)
        async with running(mirror.run()):
            await until(lambda: mirror.get("team", "more"))
            await until(lambda: mirror.unreadable == 1)
    assert {seen.view.name for seen in mirror.all()} == {"ours", "more"}
    left_out = [record.object for record in caplog.records if record.message.startswith("object left out")]  # type: ignore[attr-defined]
    assert left_out == ["team/guest", "team/late"], "each is told of once"


async def test_a_pod_that_can_be_read_again_is_seen_again() -> None:
    async def apiserver(request: web.Request) -> Any:
        if "watch" not in request.query:
            return listing(pod("p", life="first"))
        return await stream(request, ("MODIFIED", pod("p", "3")), then=asyncio.sleep(3600))

    async with answering(apiserver) as client:
        mirror = mirror_of_pods(client)
        async with running(mirror.run()):
            await until(lambda: mirror.get("team", "p"))
    assert mirror.unreadable == 0


async def test_a_node_that_cannot_be_read_is_left_out_too() -> None:
    strange = {"metadata": {"name": "strange"}, "spec": {"taints": [{"key": "k"}]}}

    async def apiserver(request: web.Request) -> Any:
        if "watch" not in request.query:
            return listing(strange, {"metadata": {"name": "plain"}})
        return await stream(request, then=asyncio.sleep(3600))

    async with answering(apiserver) as client:
        mirror = Reflector(client, Collection(NODES, see_node, lambda node: node.name), lambda name: None)
        async with running(mirror.run()):
            await mirror.synced()
    assert [node.name for node in mirror.all()] == ["plain"]
    assert mirror.unreadable == 1


async def test_a_page_that_is_no_json_ends_no_mirror(caplog: pytest.LogCaptureFixture) -> None:
    requests = count(1)

    async def proxy(request: web.Request) -> Any:
        number = next(requests)
        if number in (1, 3):
            return web.Response(text="<html>come back later</html>\n")
        if "watch" in request.query:
            return await stream(request, ("ADDED", pod("late", "3")), then=asyncio.sleep(3600))
        return listing()

    async with answering(proxy) as client:
        mirror = mirror_of_pods(client)
        async with running(mirror.run()):
            await until(lambda: mirror.get("team", "late"))


async def test_watches_that_worked_are_opened_again_at_once_however_they_end() -> None:
    clock = asyncio.get_running_loop().time
    opened: list[float] = []
    cut: list[float] = []

    async def proxy(request: web.Request) -> Any:
        if "watch" not in request.query:
            return listing()
        opened.append(clock())
        await stream(request, bookmark(), then=asyncio.sleep(0.05))
        cut.append(clock())
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with answering(proxy) as client:
        mirror = mirror_of_pods(client)
        async with running(mirror.run()):
            await until(lambda: len(opened) == 10)
    blind = [again - end for end, again in zip(cut, opened[1:], strict=False)]
    assert max(blind) < 5, "the ninth pause in a row would be over 12 s if it had doubled"
    assert mirror.relists == 1


@pytest.mark.parametrize("status", [200, 403, 410])
async def test_watches_that_end_at_once_are_opened_ever_more_slowly(status: int) -> None:
    watches = count()

    async def apiserver(request: web.Request) -> Any:
        if "watch" not in request.query:
            return listing()
        next(watches)
        return await stream(request) if status == 200 else refused(status)

    async with answering(apiserver) as client:
        async with running(mirror_of_pods(client).run()):
            await asyncio.sleep(2)
        # at the earliest after 0.1, 0.3, 0.7, 1.5 s
        assert next(watches) <= 5


async def test_a_mirror_says_why_nobody_should_rely_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = asyncio.Event()

    async def apiserver(request: web.Request) -> Any:
        if not allowed.is_set():
            return refused(403, "Forbidden")
        if "watch" not in request.query:
            return listing()
        return await stream(request, then=asyncio.sleep(3600))

    async with answering(apiserver) as client:
        mirror = mirror_of_pods(client)
        assert mirror.problem is not None
        async with running(mirror.run()):
            await until(lambda: "403 Forbidden" in (mirror.problem or ""))
            assert "/api/v1/pods is not mirrored yet" in (mirror.problem or "")
            allowed.set()
            await until(lambda: mirror.problem is None)
            monkeypatch.setattr(reflector, "STALE_SECONDS", 0.0)
            assert "/api/v1/pods was last heard of 0 s ago" in (mirror.problem or "")
