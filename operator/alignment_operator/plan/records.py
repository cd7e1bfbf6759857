"""`status.instances`: the newest life of every slot, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from alignment_api.contract.roles import ROLES
from alignment_api.contract.status import AvoidedNode, InstanceRecord, RoleStatus
from alignment_operator.plan.budgets import refilled
from alignment_operator.plan.layout import Group, Slot
from alignment_operator.plan.pods import Pods
from alignment_operator.plan.snapshot import Snapshot

End = Literal["succeeded", "failed", "lost", "removed"]


@dataclass(frozen=True)
class Records:
    """What status remembers of instances. Values only; each step gives new ones."""

    by_slot: Mapping[Slot, InstanceRecord]
    roles: Mapping[str, RoleStatus]
    """Counts by role, for people; every role of the job has them."""
    avoided: tuple[AvoidedNode, ...] = ()
    """Nodes that new pods keep away from."""

    @property
    def attempt(self) -> int:
        """Lives of the gangs so far: one count for all stages."""
        return max((record.life for record in self.by_slot.values() if ROLES[record.role].trainable), default=0)

    def of(self, group: Group) -> list[InstanceRecord]:
        """The records of a group, as far as it has any."""
        return [self.by_slot[slot] for slot in group if slot in self.by_slot]

    def open(self) -> Iterator[InstanceRecord]:
        """The lives that go on."""
        return (record for record in self.by_slot.values() if record.end is None)

    def needs_life(self, group: Group) -> bool:
        """Whether the group has no open life."""
        return any(slot not in self.by_slot or self.by_slot[slot].end is not None for slot in group)

    def closed(self, slots: Iterable[Slot], end: End) -> Records:
        """With the open lives of these slots ended."""
        by_slot = dict(self.by_slot)
        for slot in slots:
            record = by_slot.get(slot)
            if record is not None and record.end is None:
                by_slot[slot] = record.model_copy(update={"end": end})
        return replace(self, by_slot=by_slot)

    def removed(self, slots: Iterable[Slot]) -> Records:
        """With the open lives of these slots ended by the plan, but for those whose pod was never seen.

        Such a pod may have been asked for a moment ago. Its record stays open until it shows itself, so that no
        successor is made beside it.
        """
        return self.closed([slot for slot in slots if self.by_slot[slot].uid is not None], "removed")

    def refilled(self, now: datetime) -> Records:
        """With the budgets as if nothing had been used of them."""
        by_slot = dict(self.by_slot)
        for slot, record in by_slot.items():
            if record.budget is not None:
                by_slot[slot] = record.model_copy(update={"budget": refilled(record.budget, now)})
        return replace(self, by_slot=by_slot)


def read_records(snapshot: Snapshot) -> Records:
    """The records of a status, with the UIDs of pods that are seen for the first time."""
    status = snapshot.job.status
    by_slot = {(record.role, record.index): _with_uid(record, snapshot.pods) for record in status.instances}
    counts = {name: RoleStatus(name=name, pool=pool) for name, pool in snapshot.layout.pools.items()}
    avoided = tuple(node for node in status.avoided_nodes if node.until > snapshot.now)
    records = Records(by_slot, counts | {role.name: role for role in status.roles}, avoided)
    return records.refilled(snapshot.now) if snapshot.has_advanced else records


def _with_uid(record: InstanceRecord, pods: Pods) -> InstanceRecord:
    pod = pods.of(record) if record.uid is None else None
    return record if pod is None else record.model_copy(update={"uid": pod.uid})
