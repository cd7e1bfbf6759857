import asyncio
from typing import Any

import pytest
from aiohttp import web
from tests.unit.operator.faults import answering, listing, running, stream, until

from alignment_api.contract.platform import Platform
from alignment_operator.kube.nodes import NodeCounts, count_nodes, see_node, takes_pods
from alignment_operator.kube.reflector import Collection, Reflector

PLATFORM = Platform.model_validate(
    {
        "pools": {
            "onDemand": {"nodeSelector": {"pool": "onDemand"}},
            "spot": {
                "nodeSelector": {"pool": "spot"},
                "tolerations": [{"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}],
            },
        }
    }
)


def node(name: str = "n", pool: str = "onDemand", ready: str = "True", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"pool": pool, "zone": "a"}},
        "spec": spec,
        "status": {"conditions": [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": ready}]},
    }


def taint(key: str, value: str = "", effect: str = "NoSchedule") -> dict[str, str]:
    return {"key": key, "value": value, "effect": effect}


def test_nodes_are_counted_for_their_pool() -> None:
    nodes = [
        node("a"),
        node("b", ready="Unknown"),
        node("c", unschedulable=True),
        node("d", pool="spot", taints=[taint("spot", "true")]),
        node("e", pool="spot", taints=[taint("gpu")]),
        node("f", pool="other"),
    ]
    # cpu is not configured, so prepare goes where the policy goes
    assert count_nodes(PLATFORM, map(see_node, nodes)) == {"onDemand": 1, "spot": 1, "cpu": 1}


@pytest.mark.parametrize(
    ("toleration", "expected"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "spot", "operator": "Exists"}, True),
        ({"key": "spot", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "spot", "value": "true"}, True),
        ({"key": "spot", "value": "yes"}, False),
        ({"key": "gpu", "operator": "Exists"}, False),
    ],
)
def test_a_taint_needs_a_toleration_that_fits(toleration: dict[str, str], expected: bool) -> None:
    pool = PLATFORM.pools.on_demand.model_copy(update={"tolerations": (toleration,)})
    assert takes_pods(pool, see_node(node(taints=[taint("spot", "true")]))) is expected


def test_a_taint_that_only_prefers_repels_nobody() -> None:
    tainted = node(taints=[taint("quiet", effect="PreferNoSchedule")])
    assert takes_pods(PLATFORM.pools.on_demand, see_node(tainted))


def test_a_heartbeat_is_no_change() -> None:
    before, after = node(taints=[taint("x") | {"timeAdded": "1"}]), node(taints=[taint("x") | {"timeAdded": "2"}])
    after["status"]["conditions"][1] |= {"lastHeartbeatTime": "2026-11-24T00:00:00Z"}
    assert see_node(before) == see_node(after)


@pytest.mark.parametrize(("ready", "unreachable"), [("True", False), ("False", False), ("Unknown", True)])
def test_only_a_silent_node_is_unreachable(ready: str, unreachable: bool) -> None:
    # NotReady is a kubelet that still speaks: it will say itself how its pods end
    assert see_node(node(ready=ready)).unreachable is unreachable


async def test_nodes_are_counted_once_for_each_change_of_a_node_or_of_the_platform() -> None:
    changed = asyncio.Event()

    async def apiserver(request: web.Request) -> Any:
        if "watch" not in request.query:
            return listing(node("a"), node("b"))
        await changed.wait()
        events = [
            {**now, "metadata": now["metadata"] | {"resourceVersion": version}}
            for version, now in (("2", node("a")), ("3", node("b", unschedulable=True)))
        ]
        return await stream(request, *(("MODIFIED", event) for event in events), then=asyncio.sleep(3600))

    async with answering(apiserver) as client:
        mirror = Reflector(client, Collection("/api/v1/nodes", see_node, lambda seen: seen.name), lambda name: None)
        counts = NodeCounts(mirror)
        async with running(mirror.run()):
            await mirror.synced()
            first = counts.of(PLATFORM)
            assert first == {"onDemand": 2, "spot": 0, "cpu": 2}
            assert counts.of(PLATFORM) is first
            moved = Platform.model_validate({"pools": {"onDemand": {"nodeSelector": {"pool": "elsewhere"}}}})
            assert counts.of(moved)["onDemand"] == 0
            changed.set()
            await until(lambda: counts.of(PLATFORM)["onDemand"] == 1)
