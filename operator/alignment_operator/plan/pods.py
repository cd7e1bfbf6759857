"""A job's pods by the slot that they fill, so that no question asks all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from alignment_api.contract.roles import ROLES
from alignment_api.contract.status import InstanceRecord
from alignment_operator.plan.layout import Group, Slot
from alignment_operator.plan.types import PodView


@dataclass(frozen=True)
class Pods:
    """What is seen of a job's pods, every life of every slot."""

    by_slot: Mapping[Slot, tuple[PodView, ...]]

    def __iter__(self) -> Iterator[PodView]:
        return (pod for pods in self.by_slot.values() for pod in pods)

    def at(self, slot: Slot) -> tuple[PodView, ...]:
        """Every life of a slot."""
        return self.by_slot.get(slot, ())

    def among(self, group: Group) -> Iterator[PodView]:
        """Every life of the slots of a group."""
        return (pod for slot in group for pod in self.at(slot))

    def of(self, record: InstanceRecord) -> PodView | None:
        """The pod of this very life."""
        life, uid = record.life, record.uid
        for pod in self.by_slot.get((record.role, record.index), ()):
            if pod.life == life and (uid is None or uid == pod.uid):
                return pod
        return None


def index_pods(pods: Iterable[PodView]) -> Pods:
    """Pods by slot. One whose role nobody knows is somebody else's, whatever its labels say."""
    by_slot: dict[Slot, list[PodView]] = {}
    for pod in pods:
        if pod.role in ROLES:
            by_slot.setdefault((pod.role, pod.index), []).append(_as_ready_as_it_gets(pod))
    return Pods({slot: tuple(lives) for slot, lives in by_slot.items()})


def waits_for(pod: PodView | None) -> str:
    """Why a pod is not ready, as one word."""
    if pod is None:
        return "NotCreated"
    if pod.gated:
        return "Gated"
    return pod.reason or ("Starting" if pod.phase == "Running" else "Pending")


def _as_ready_as_it_gets(pod: PodView) -> PodView:
    """The first pod of a role in a gang serves for all: the others are ready when they run. None is on a lost node."""
    serves = not ROLES[pod.role].trainable or pod.index == 0
    runs = pod.phase == "Running" and pod.gone_by is None
    ready = (pod.ready if serves else runs) and not pod.node_lost
    return pod if ready == pod.ready else replace(pod, ready=ready)
