"""Nodes as far as pools care: which pool they belong to, whether they take pods, whether they are still there. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignment_api.contract.platform import Platform, Pool
from alignment_api.contract.roles import PoolName
from alignment_operator.kube.client import Manifest

REPELLING = ("NoSchedule", "NoExecute")
POOLS: tuple[PoolName, ...] = ("onDemand", "spot", "cpu")


@dataclass(frozen=True)
class NodeView:
    """What is kept of a node; its heartbeats are not."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[Mapping[str, str], ...]
    cordoned: bool
    ready: str
    """True, False, or Unknown where the control plane has lost sight of it."""

    @property
    def unreachable(self) -> bool:
        """Its pods may run on, unseen."""
        return self.ready == "Unknown"


def see_node(node: Manifest) -> NodeView:
    """A node from its JSON."""
    conditions = node.get("status", {}).get("conditions", ())
    spec = node.get("spec", {})
    return NodeView(
        name=node["metadata"]["name"],
        labels=node["metadata"].get("labels", {}),
        taints=tuple({k: v for k, v in taint.items() if k != "timeAdded"} for taint in spec.get("taints", ())),
        cordoned=spec.get("unschedulable", False),
        ready=next((c["status"] for c in conditions if c["type"] == "Ready"), "False"),
    )


def count_nodes(platform: Platform, nodes: Iterable[NodeView]) -> dict[PoolName, int]:
    """Nodes of each pool that would take a pod now."""
    seen = tuple(nodes)
    return {name: sum(takes_pods(platform.pools.named(name), node) for node in seen) for name in POOLS}


def takes_pods(pool: Pool, node: NodeView) -> bool:
    """The node belongs to the pool, is ready, and its taints are tolerated."""
    return (
        node.ready == "True"
        and not node.cordoned
        and all(node.labels.get(key) == value for key, value in pool.node_selector.items())
        and all(
            any(_tolerates(toleration, taint) for toleration in pool.tolerations)
            for taint in node.taints
            if taint["effect"] in REPELLING
        )
    )


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, str]) -> bool:
    if toleration.get("effect") not in (None, "", taint["effect"]):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", "")
