"""The next life of what has none, and what it waits for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from alignment_api.contract.roles import ROLES
from alignment_api.contract.status import InstanceRecord
from alignment_operator.plan.layout import Group, Slot, StageLayout
from alignment_operator.plan.records import Records
from alignment_operator.plan.snapshot import Snapshot
from alignment_operator.plan.terminations import given_up_at, is_alive, termination_of


@dataclass(frozen=True)
class Blocked:
    """Why a next life must wait."""

    reason: str
    message: str
    until: datetime | None
    """None: until the API shows something else."""


def open_lives(snapshot: Snapshot, stage: StageLayout, records: Records) -> Records:
    """Gives every group without a life its next one, unless something holds it back."""
    if _begins_too_early(snapshot, stage, records):
        return records
    attempt = records.attempt
    opened = dict(records.by_slot)
    for group in stage.groups:
        if not records.needs_life(group) or blocked_by(snapshot, group, records) is not None:
            continue
        before = [record.life for record in records.of(group)] + [pod.life for pod in snapshot.pods.among(group)]
        earlier = [attempt] if ROLES[group[0][0]].trainable else []  # an attempt follows all of every stage
        life = 1 + max(before + earlier, default=0)
        for slot in group:
            opened[slot] = _next_life(slot, records.by_slot.get(slot), life)
    return replace(records, by_slot=opened)


def what_blocks(snapshot: Snapshot, stage: StageLayout, records: Records) -> tuple[Blocked, ...]:
    """What keeps next lives waiting."""
    blocked = (blocked_by(snapshot, group, records) for group in stage.groups if records.needs_life(group))
    return tuple(each for each in blocked if each is not None)


def _begins_too_early(snapshot: Snapshot, stage: StageLayout, records: Records) -> bool:
    """Whether nothing of the stage lives yet and a server of the former one stays: a stage's pods are made together."""
    begins = all(records.needs_life(group) for group in stage.groups)
    return begins and any(_staying(snapshot, group) for group in stage.groups)


def _next_life(slot: Slot, former: InstanceRecord | None, life: int) -> InstanceRecord:
    """What the slot has used of the budgets stays with it, and since when it is missing."""
    role, index = slot
    if former is None:
        return InstanceRecord(role=role, index=index, life=life)
    missing = former.unready_since if former.end in ("failed", "lost") else None
    return InstanceRecord(role=role, index=index, life=life, budget=former.budget, unready_since=missing)


def blocked_by(snapshot: Snapshot, group: Group, records: Records) -> Blocked | None:
    """What keeps the group's next life waiting: a back-off, or an older life that may still write, or that serves and
    has not been told to go."""
    lead, now = group[0][0], snapshot.now
    first = records.by_slot.get(group[0])
    use = first.budget if first is not None and first.end in ("failed", "lost") else None
    if use is not None and use.not_before is not None and now < use.not_before:
        message = f"{lead} tries again at {use.not_before:%H:%M:%S} UTC after {use.last}"
        return Blocked("BackingOff", message, use.not_before)
    if staying := _staying(snapshot, group):
        return Blocked("Replacing", f"{lead} waits for {', '.join(staying)} to be told to go", None)
    if not ROLES[lead].writes:
        return None  # its successor has another name and need not wait for its end
    alive = [pod for pod in snapshot.pods.among(group) if is_alive(pod, now)]
    if not alive:
        return None
    ends = (pod.gone_by if pod.node_lost else given_up_at(pod.gone_by) for pod in alive if pod.gone_by is not None)
    message = f"{lead} waits for {', '.join(sorted(pod.name for pod in alive))} to end"
    return Blocked("Fencing", message, max((end for end in ends if end > now), default=None))


def _staying(snapshot: Snapshot, group: Group) -> list[str]:
    """Servers of the group's slots that nobody has told to go, as far as the API shows: none is made beside them.

    The word is sent by the pass that ends their lives, and may be refused or late; until it has arrived, peers find
    both under one name.
    """
    servers = (pod for pod in snapshot.pods.among(group) if not ROLES[pod.role].writes)
    return sorted(pod.name for pod in servers if termination_of(pod) is None)
