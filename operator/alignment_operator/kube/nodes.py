"""Nodes as far as pools care: which pool they belong to, whether they take pods, whether they are still there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignment_api.contract.platform import Platform, Pool
from alignment_api.contract.roles import PoolName
from alignment_operator.kube.client import Manifest
from alignment_operator.kube.reflector import Reflector

REPELLING = ("NoSchedule", "NoExecute")
POOLS: tuple[PoolName, ...] = ("onDemand", "spot", "cpu")


@dataclass(frozen=True)
class Taint:
    """What keeps pods away that do not tolerate it."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True)
class NodeView:
    """What is kept of a node; its heartbeats are not."""

    name: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
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
        taints=tuple(Taint(taint["key"], taint.get("value", ""), taint["effect"]) for taint in spec.get("taints", ())),
        cordoned=spec.get("unschedulable", False),
        ready=next((c["status"] for c in conditions if c["type"] == "Ready"), "False"),
    )


def count_nodes(platform: Platform, nodes: Iterable[NodeView]) -> dict[PoolName, int]:
    """Nodes of each pool that would take a pod now."""
    seen = tuple(nodes)
    return {name: sum(takes_pods(platform.pools.named(name), node) for node in seen) for name in POOLS}


class NodeCounts:
    """Nodes of each pool, counted anew only where a node or the platform has changed: a count looks at all of them."""

    def __init__(self, nodes: Reflector[NodeView, str]) -> None:
        self._nodes = nodes
        self._counted: tuple[int, Platform, dict[PoolName, int]] | None = None

    def of(self, platform: Platform) -> dict[PoolName, int] | None:
        """`count_nodes` of what there is now; None where nodes cannot be listed."""
        if not self._nodes.whole:
            return None
        changes = self._nodes.changes
        if self._counted is None or self._counted[0] != changes or self._counted[1] is not platform:
            self._counted = (changes, platform, count_nodes(platform, self._nodes.all()))
        return self._counted[2]


def takes_pods(pool: Pool, node: NodeView) -> bool:
    """The node belongs to the pool, is ready, and its taints are tolerated."""
    return (
        node.ready == "True"
        and not node.cordoned
        and all(node.labels.get(key) == value for key, value in pool.node_selector.items())
        and all(
            any(_tolerates(toleration, taint) for toleration in pool.tolerations)
            for taint in node.taints
            if taint.effect in REPELLING
        )
    )


def _tolerates(toleration: Mapping[str, Any], taint: Taint) -> bool:
    if toleration.get("effect") not in (None, "", taint.effect):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return toleration.get("key") in (None, "", taint.key)
    return toleration.get("key") == taint.key and toleration.get("value", "") == taint.value
