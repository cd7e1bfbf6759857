"""The lease on bad days: conflicts, lost answers, refusals and silence. On a real apiserver: tests/cluster."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from tests.unit.operator.faults import Manifest, answering, refused, until

from alignment_operator.kube import lease as settings
from alignment_operator.kube.client import KubeClient
from alignment_operator.kube.lease import Lease, LeaseLost

NAME = "/apis/coordination.k8s.io/v1/namespaces/ns/leases/operator"


class Store:
    """Keeps one Lease, by versions, as the apiserver does; `fault` may spoil an answer, or keep a request out."""

    def __init__(self) -> None:
        self.lease: Manifest = {}
        self.writes = 0
        self.fault: Callable[[web.Request, web.Response], Awaitable[web.Response]] | None = None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        answer = await self._answer(request)
        return answer if self.fault is None else await self.fault(request, answer)

    async def _answer(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.json_response(self.lease) if self.lease else refused(404, "NotFound")
        body = await request.json()
        version = self.lease.get("metadata", {}).get("resourceVersion", "")
        if body["metadata"].get("resourceVersion", "") != version:
            return refused(409, "Conflict")
        self.writes += 1
        self.lease = body
        self.lease["metadata"]["resourceVersion"] = str(self.writes)
        return web.json_response(self.lease)

    @property
    def holder(self) -> str:
        return str(self.lease["spec"]["holderIdentity"])


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "RETRY_SECONDS", 0.04)


def make(client: KubeClient, who: str = "me") -> Lease:
    return Lease(client, "ns", "operator", who)


async def lost_answer(request: web.Request, answer: web.Response) -> web.Response:
    """Stored, and nobody is told."""
    return refused(504) if request.method == "PUT" else answer


async def reset(request: web.Request, answer: web.Response) -> web.Response:
    if request.method == "PUT":
        assert request.transport is not None
        request.transport.abort()
    return answer


async def busy(request: web.Request, answer: web.Response) -> web.Response:
    return web.Response(status=429, headers={"Retry-After": "1"})


async def page(request: web.Request, answer: web.Response) -> web.Response:
    return web.Response(text="<html>maintenance</html>")


@pytest.mark.parametrize("fault", [lost_answer, reset, busy, page])
async def test_a_holder_renews_through_lost_answers_and_refusals(fault: Any) -> None:
    store, faults = Store(), 0

    async def sometimes(request: web.Request, answer: web.Response) -> web.Response:
        """Every other write and its read back go wrong."""
        nonlocal faults
        if store.writes % 2 or faults > 8:
            return answer
        faults += 1
        return await fault(request, answer)  # type: ignore[no-any-return]

    async with answering(store.serve) as client:
        lease = make(client)
        await lease.acquire()
        store.fault = sometimes
        keeping = asyncio.create_task(lease.keep())
        await until(lambda: store.writes >= 12 or keeping.done())
        assert not keeping.done(), keeping.exception()
        assert store.holder == "me"
        assert faults > 0
        keeping.cancel()


async def test_a_request_that_hangs_leaves_time_for_the_next_one() -> None:
    store, hung = Store(), asyncio.Event()

    async def once(request: web.Request, answer: web.Response) -> web.Response:
        if not hung.is_set():
            hung.set()
            await asyncio.sleep(3600)
        return answer

    async with answering(store.serve) as client:
        lease = make(client)
        await lease.acquire()
        store.fault = once
        keeping = asyncio.create_task(lease.keep())
        await hung.wait()
        writes = store.writes
        await until(lambda: store.writes > writes + 1 or keeping.done())
        assert not keeping.done(), keeping.exception()
        keeping.cancel()


async def test_a_lease_with_another_name_in_it_is_lost_at_once() -> None:
    store = Store()
    async with answering(store.serve) as client:
        lease = make(client)
        await lease.acquire()
        store.lease["spec"]["holderIdentity"] = "thief"
        with pytest.raises(LeaseLost, match="another holds it: thief"):
            await lease.keep()


async def test_a_lease_that_cannot_be_renewed_is_lost_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "RENEW_DEADLINE_SECONDS", 0.5)
    clock = asyncio.get_running_loop().time
    store = Store()
    async with answering(store.serve) as client:
        lease = make(client)
        began = clock()
        await lease.acquire()
        store.fault = busy
        with pytest.raises(LeaseLost, match=r"not renewed for 0\.5 s: the Lease was not read or written: .*429"):
            await lease.keep()
        assert clock() - began >= 0.5


async def test_a_lease_that_was_deleted_is_made_again() -> None:
    store = Store()
    async with answering(store.serve) as client:
        lease = make(client)
        await lease.acquire()
        store.lease = {}
        keeping = asyncio.create_task(lease.keep())
        await until(lambda: store.lease)
        assert store.holder == "me"
        keeping.cancel()


async def test_a_standby_that_cannot_read_the_lease_says_so_until_it_can() -> None:
    store = Store()

    async def forbidden(request: web.Request, answer: web.Response) -> web.Response:
        return refused(403, "Forbidden")

    async with answering(store.serve) as client:
        await make(client, "leader").acquire()
        standby = make(client, "standby")
        assert standby.problem is not None
        store.fault = forbidden
        waiting = asyncio.create_task(standby.acquire())
        await until(lambda: "403 Forbidden" in (standby.problem or ""))
        store.fault = None
        await until(lambda: standby.problem is None)
        assert not waiting.done()
        waiting.cancel()


async def test_a_renewal_waits_for_no_mass_of_other_requests() -> None:
    store = Store()
    async with answering(store.serve) as client:
        lease = make(client)
        await lease.acquire()
        # 600 pass at once, the others at 300 a second: more than 13 s of work, and the deadline is 10
        work = [asyncio.create_task(client.get("/api/v1/pods")) for _ in range(4600)]
        await asyncio.sleep(0)
        keeping = asyncio.create_task(lease.keep())
        renewed = store.writes + 2
        await until(lambda: store.writes >= renewed or keeping.done())
        assert not keeping.done()
        assert not all(task.done() for task in work)
        for task in (keeping, *work):
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)
