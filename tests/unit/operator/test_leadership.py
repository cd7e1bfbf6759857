"""Whatever is installed, one operator serves a job: of one namespace, or of all. With real rights: tests/cluster."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from tests.unit.operator.faults import Manifest, answering, refused

from alignment_operator.kube import leadership as settings
from alignment_operator.kube import lease as lease_settings
from alignment_operator.kube.client import ApiError, KubeClient
from alignment_operator.kube.leadership import Leadership, ServedByAnother
from alignment_operator.kube.lease import LeaseLost

LEASES = "/apis/coordination.k8s.io/v1/namespaces/"
OWN = f"{LEASES}team/leases/alignment-jobs"
SHARED = f"{LEASES}shared/leases/alignment-operator"


class Leases:
    """Leases by their path, with versions, as the apiserver keeps them."""

    def __init__(self) -> None:
        self.kept: dict[str, Manifest] = {}
        self.asked: Counter[str] = Counter()
        self.after_a_read: Callable[[], Awaitable[object]] | None = None
        """What happens, once, between the next read and what its reader does with it."""
        self._versions = 0

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.asked[f"{request.method} {request.path}"] += 1
        if request.method == "GET":
            found = self.kept.get(request.path)
            happen, self.after_a_read = self.after_a_read, None
            if happen is not None:
                await happen()
            return refused(404, "NotFound") if found is None else web.json_response(found)
        body = await request.json()
        path = request.path if request.method == "PUT" else f"{request.path}/{body['metadata']['name']}"
        if body["metadata"].get("resourceVersion") != self.kept.get(path, {}).get("metadata", {}).get(
            "resourceVersion"
        ):
            return refused(409, "Conflict")
        self._versions += 1
        body["metadata"]["resourceVersion"] = str(self._versions)
        self.kept[path] = body
        return web.json_response(body)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_settings, "RETRY_SECONDS", 0.04)
    monkeypatch.setattr(settings, "LOOK_SECONDS", 0.0)


async def leading(client: KubeClient, namespace: str | None, who: str) -> Leadership:
    made = Leadership(client, namespace, "shared", who)
    await made.lease.acquire()
    return made


async def test_who_serves_all_leaves_a_namespace_alone_while_somebody_holds_its_lease() -> None:
    async with answering(Leases().serve) as client:
        team = await leading(client, "team", "team's")
        everyone = await leading(client, None, "all's")
        with pytest.raises(ServedByAnother, match="namespace team is served by team's"):
            await everyone.check("team")
        await everyone.check("other")
        await team.lease.release()
        await everyone.check("team")


async def test_a_namespace_whose_operator_is_gone_is_served_after_its_leases_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lease_settings, "DURATION_SECONDS", 1)
    async with answering(Leases().serve) as client:
        everyone = await leading(client, None, "all's")
        keeping = asyncio.create_task(everyone.lease.keep())
        await leading(client, "team", "team's")  # and is never renewed
        began = asyncio.get_running_loop().time()
        with pytest.raises(ServedByAnother):
            await everyone.check("team")
        while await _is_left(everyone):  # noqa: ASYNC110 - an expiry has no event
            await asyncio.sleep(0.02)
        assert asyncio.get_running_loop().time() - began >= 1
        keeping.cancel()


async def _is_left(leadership: Leadership) -> bool:
    try:
        await leadership.check("team")
    except ServedByAnother:
        return True
    return False


async def test_a_look_serves_for_a_while_and_is_repeated_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    leases = Leases()
    async with answering(leases.serve) as client:
        everyone = await leading(client, None, "all's")
        monkeypatch.setattr(settings, "LOOK_SECONDS", 3600.0)
        await asyncio.gather(*(everyone.check("team") for _ in range(20)))
        assert leases.asked[f"GET {OWN}"] == 1
        monkeypatch.setattr(settings, "LOOK_SECONDS", 0.0)
        again = await leading(client, None, "all's")
        await again.check("team")
        await again.check("team")
        assert leases.asked[f"GET {OWN}"] == 3
        assert leases.asked[f"POST {LEASES}team/leases"] + leases.asked[f"PUT {OWN}"] == 1, "the mark is left once"


async def test_who_takes_a_namespace_waits_until_who_serves_all_must_have_seen_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with answering(Leases().serve) as client:
        everyone = await leading(client, None, "all's")
        await everyone.check("team")
        team = await leading(client, "team", "team's")
        monkeypatch.setattr(settings, "DURATION_SECONDS", 3600)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(team.settle(), 0.2)
        unseen = await leading(client, "unseen", "its own")
        await unseen.settle()
        await everyone.settle()


async def test_a_namespace_that_is_taken_during_a_look_is_not_written_in() -> None:
    leases = Leases()
    async with answering(leases.serve) as client:
        everyone = await leading(client, None, "all's")
        leases.after_a_read = lambda: leading(client, "team", "team's")
        with pytest.raises(ApiError, match="409"):
            await everyone.check("team")
        with pytest.raises(ServedByAnother):
            await everyone.check("team")


async def test_two_who_serve_the_same_take_turns() -> None:
    async with answering(Leases().serve) as client:
        for namespace in ("team", None):
            first = await leading(client, namespace, "first")
            waiting = asyncio.create_task(leading(client, namespace, "second"))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            await first.lease.release()
            await asyncio.wait_for(waiting, 60)


async def test_nothing_is_written_once_others_may_think_that_nobody_holds_the_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leases = Leases()
    async with answering(leases.serve) as client:
        for namespace, path in ("team", OWN), (None, SHARED):
            leadership = await leading(client, namespace, "me")
            permitted = client.permitted(leadership.check)
            await permitted.replace(path, leases.kept[path])
            with monkeypatch.context() as patch:
                patch.setattr(lease_settings, "DURATION_SECONDS", 0)
                with pytest.raises(LeaseLost, match="not renewed for 0 s"):
                    await permitted.replace(path, leases.kept[path])
            assert leases.asked[f"PUT {path}"] == 1
            assert (await permitted.get(path))["spec"]["holderIdentity"] == "me"
