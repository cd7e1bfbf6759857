"""The parts of the Kubernetes runtime on a real apiserver, and on one that is cut off."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes.aio.client import Configuration
from tests.rig.cluster import Rig
from tests.rig.control_plane import ADMIN

from alignment_operator.kube.client import ApiError, KubeClient
from alignment_operator.kube.lease import Lease, LeaseLost
from alignment_operator.kube.paths import collection, named
from alignment_operator.kube.reflector import Collection, Reflector

pytestmark = pytest.mark.cluster
CONFIGS = collection("ConfigMap", "default")
LABEL = "test.alignment.run/mirror"


class Wire:
    """A TCP relay to the apiserver that can be cut."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._cut = False
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection and refuse new ones."""
        self._cut = True
        for task in self._tasks:
            task.cancel()

    def mend(self) -> None:
        self._cut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if not self._cut:
                await self._relay(reader, writer)
        except (asyncio.CancelledError, OSError):
            pass  # cut, or one side has hung up
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(reader, far_writer))
                both.create_task(_copy(far_reader, writer))
        finally:
            far_writer.transport.abort()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    raise ConnectionResetError("the other side has hung up")


async def until(look: Callable[[], bool], seconds: float = 300) -> None:
    async with asyncio.timeout(seconds):
        while not look():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.02)


@pytest.fixture
async def client(control_plane: Rig) -> AsyncIterator[KubeClient]:
    made = await KubeClient.connect(control_plane.kubeconfig)
    yield made
    await made.close()


@asynccontextmanager
async def wired(rig: Rig) -> AsyncIterator[tuple[KubeClient, Wire]]:
    """A client whose wire can be cut. Its certificate check is off: the relay has another address."""
    address = urlsplit(rig.layout.api_address)
    assert address.hostname is not None
    wire = Wire(address.hostname, address.port or 443)
    async with wire.open() as port:
        configuration = Configuration(host=f"https://127.0.0.1:{port}")
        configuration.api_key["BearerToken"] = f"Bearer {rig.credentials.token(ADMIN)}"
        configuration.verify_ssl = False
        client = KubeClient(configuration, in_cluster=False)
        try:
            yield client, wire
        finally:
            await client.close()


@asynccontextmanager
async def mirroring(client: KubeClient, path: str, told: list[str]) -> AsyncIterator[Reflector[str, str]]:
    """A mirror of the `data.v` of labelled objects, by the value of their label."""
    seen: Collection[str, str] = Collection(
        path, view=lambda o: o["data"].get("v"), owner=lambda v: v.partition("-")[0], selector=LABEL
    )
    mirror = Reflector(client, seen, told.append)
    task = asyncio.create_task(mirror.run())
    try:
        await asyncio.wait_for(mirror.synced(), 20)
        yield mirror
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def config(name: str, value: str) -> dict[str, Any]:
    metadata = {"name": name, "labels": {LABEL: "yes"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"v": value}}


@pytest.fixture
async def configs(client: KubeClient) -> AsyncIterator[KubeClient]:
    yield client
    await client.delete(CONFIGS, params={"labelSelector": LABEL})


async def test_a_mirror_follows_and_tells_the_owner(configs: KubeClient) -> None:
    told: list[str] = []
    await configs.create(CONFIGS, config("a", "ann-1"))
    async with mirroring(configs, CONFIGS, told) as mirror:
        assert mirror.of("ann") == ("ann-1",)
        await configs.create(CONFIGS, config("b", "bob-1"))
        await until(lambda: mirror.of("bob") == ("bob-1",))
        await configs.patch(named("ConfigMap", "default", "b"), {"data": {"v": "ann-2"}})
        await until(lambda: set(mirror.of("ann")) == {"ann-1", "ann-2"})
        assert mirror.of("bob") == ()
        await configs.delete(named("ConfigMap", "default", "a"))
        await until(lambda: mirror.of("ann") == ("ann-2",))
        await configs.patch(named("ConfigMap", "default", "b"), {"metadata": {"annotations": {"noise": "1"}}})
        await configs.create(CONFIGS, config("c", "cid-1"))
        await until(lambda: mirror.get("default", "c") == "cid-1")
    assert told == ["ann", "bob", "bob", "ann", "ann", "cid"]
    assert mirror.relists == 1


async def test_a_cut_wire_loses_nothing_and_lists_nothing_again(control_plane: Rig, configs: KubeClient) -> None:
    told: list[str] = []
    for name in ("a", "b"):
        await configs.create(CONFIGS, config(name, f"{name}-1"))
    async with wired(control_plane) as (client, wire), mirroring(client, CONFIGS, told) as mirror:
        wire.cut()
        await configs.delete(named("ConfigMap", "default", "a"))
        await configs.patch(named("ConfigMap", "default", "b"), {"data": {"v": "b-2"}})
        await configs.create(CONFIGS, config("c", "c-1"))
        wire.mend()
        await until(lambda: (*mirror.of("a"), *mirror.of("b"), *mirror.of("c")) == ("b-2", "c-1"))
        assert mirror.relists == 1
    assert sorted(told[:2]) == ["a", "b"]  # what a list brings has no order
    assert told[2:] == ["a", "b", "c"]


WIDGETS = "/apis/test.alignment.run/v1/namespaces/default/widgets"


def widget(name: str, value: str) -> dict[str, Any]:
    return config(name, value) | {"apiVersion": "test.alignment.run/v1", "kind": "Widget"}


async def _serve_widgets(client: KubeClient) -> None:
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    names = {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"}
    crd = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.test.alignment.run"},
        "spec": {"group": "test.alignment.run", "scope": "Namespaced", "names": names, "versions": [version]},
    }
    await client.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
    async with asyncio.timeout(300):
        while True:
            with suppress(ApiError):
                await client.get(WIDGETS)
                return
            await asyncio.sleep(0.1)


async def _drop_widgets(client: KubeClient) -> None:
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/widgets.test.alignment.run"
    await client.delete(path)
    async with asyncio.timeout(300):
        with suppress(ApiError):
            while await client.get(path):  # noqa: ASYNC110 - the apiserver has no event for it
                await asyncio.sleep(0.1)


async def test_a_version_too_old_replaces_the_whole_store(control_plane: Rig, client: KubeClient) -> None:
    told: list[str] = []
    await _serve_widgets(client)
    for name in ("gone", "kept"):
        await client.create(WIDGETS, widget(name, f"{name}-1"))
    async with wired(control_plane) as (cut_off, wire), mirroring(cut_off, WIDGETS, told) as mirror:
        wire.cut()
        # A collection made anew keeps no history of the old one: the version we know is too old for it (410).
        await _drop_widgets(client)
        await _serve_widgets(client)
        await client.create(WIDGETS, widget("kept", "kept-1"))
        await client.create(WIDGETS, widget("new", "new-1"))
        wire.mend()
        await until(lambda: mirror.of("new") == ("new-1",))
        assert mirror.relists == 2
        assert (mirror.of("gone"), mirror.of("kept")) == ((), ("kept-1",))
    assert sorted(told[:2]) == ["gone", "kept"]
    assert sorted(told[2:]) == ["gone", "new"]
    await _drop_widgets(client)


async def test_a_request_outlives_a_short_cut(control_plane: Rig) -> None:
    async with wired(control_plane) as (client, wire):
        await client.get(CONFIGS)
        wire.cut()
        asyncio.get_running_loop().call_later(1.0, wire.mend)
        assert (await client.get(CONFIGS))["kind"] == "ConfigMapList"


async def test_a_refusal_is_not_repeated_and_says_why(client: KubeClient) -> None:
    with pytest.raises(ApiError, match="not found") as error:
        await client.get(named("ConfigMap", "default", "nothing"))
    assert (error.value.status, error.value.reason) == (404, "NotFound")
    with pytest.raises(ApiError, match="Invalid value") as error:
        await client.create(CONFIGS, config("No Such Name", "v"))
    assert error.value.status == 422


async def test_one_holds_the_lease_and_the_next_takes_it_when_it_is_released(client: KubeClient) -> None:
    first, second = (Lease(client, "default", "test-handover", name) for name in ("first", "second"))
    await first.acquire()
    waiting = asyncio.create_task(second.acquire())
    await asyncio.sleep(3)
    assert not waiting.done()
    await first.release()
    await asyncio.wait_for(waiting, 120)
    assert await _holder(client, "test-handover") == "second"
    await client.delete(named("Lease", "default", "test-handover"))


async def test_a_lease_that_another_took_ends_its_holder(client: KubeClient) -> None:
    lease = Lease(client, "default", "test-theft", "first")
    await lease.acquire()
    keeping = asyncio.create_task(lease.keep())
    thief = {"spec": {"holderIdentity": "thief"}}
    await client.patch(named("Lease", "default", "test-theft"), thief)
    with pytest.raises(LeaseLost, match="another holds it"):
        await asyncio.wait_for(keeping, 10)
    await client.delete(named("Lease", "default", "test-theft"))


async def test_a_holder_that_cannot_renew_gives_up_before_the_lease_expires(control_plane: Rig) -> None:
    clock = asyncio.get_running_loop().time
    async with wired(control_plane) as (client, wire):
        lease = Lease(client, "default", "test-partition", "first")
        await lease.acquire()
        cut_at = clock()
        wire.cut()
        with pytest.raises(LeaseLost, match="not renewed for 10 s"):
            await lease.keep()
        assert clock() - cut_at < 15
        wire.mend()
        await client.delete(named("Lease", "default", "test-partition"))


async def test_a_lease_of_a_dead_holder_is_taken_after_its_duration(client: KubeClient) -> None:
    dead, heir = (Lease(client, "default", "test-death", name) for name in ("dead", "heir"))
    await dead.acquire()
    start = asyncio.get_running_loop().time()
    await asyncio.wait_for(heir.acquire(), 30)
    assert 15 <= asyncio.get_running_loop().time() - start < 22
    assert await _holder(client, "test-death") == "heir"
    await client.delete(named("Lease", "default", "test-death"))


async def _holder(client: KubeClient, name: str) -> str:
    return str((await client.get(named("Lease", "default", name)))["spec"]["holderIdentity"])
