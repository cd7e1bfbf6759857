"""`status.instances`: which lives there were, how each ended, and the lives that come next."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from alignment_api.roles import ROLES
from alignment_api.status import AlignmentJobStatus, InstanceRecord, RoleStatus
from alignment_operator.plan.layout import Group, Layout, Slot
from alignment_operator.plan.pods import Pods
from alignment_operator.plan.terminations import LOST_LATE, VANISHED, Termination, is_alive, termination_of

End = Literal["succeeded", "failed", "lost", "removed"]

FIRST_BACKOFF = timedelta(seconds=10)
"""After the first error of a role; doubled by each further one."""
LONGEST_BACKOFF = timedelta(minutes=5)
"""Long enough to spare the cluster, short enough to still be watched."""


@dataclass(frozen=True)
class Records:
    """What status remembers of instances. Values only; each step gives new ones."""

    by_slot: Mapping[Slot, InstanceRecord]
    roles: Mapping[str, RoleStatus]
    """Counts by role; every role of the job has them."""
    counted: Mapping[str, Termination]
    """The ends that were counted in this pass, by role."""

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


def read_records(status: AlignmentJobStatus, layout: Layout, pods: Pods) -> Records:
    """The records of a status, with the UIDs of pods that are seen for the first time."""
    by_slot = {(record.role, record.index): _with_uid(record, pods) for record in status.instances}
    counts = {name: RoleStatus(name=name, pool=pool) for name, pool in layout.pools.items()}
    return Records(by_slot, counts | {role.name: role for role in status.roles}, {})


def count_ends(records: Records, groups: Iterable[Group], pods: Pods, now: datetime) -> Records:
    """Counts each end once: a record that has its `end` is not counted again.

    A gang that loses a node shows errors of the peers at once and the loss only when the node's grace period is over.
    The peers' error is then made a disruption. No next life can have been opened: it waits for the lost pod.
    """
    by_slot, roles, counted = dict(records.by_slot), dict(records.roles), dict(records.counted)
    for group in groups:
        lives = records.of(group)
        cause = _cause(lives, pods)
        if cause is not None:
            role, termination = cause
            roles[role] = _with_end(roles[role], termination, now)
            counted[role] = termination
            by_slot |= {(life.role, life.index): life.model_copy(update={"end": termination.end}) for life in lives}
        elif lives and all(life.end == "failed" for life in lives) and (lost := _lost_role(lives, pods)) is not None:
            failed = max(dict(group), key=lambda name: _moment(roles[name]))
            roles[failed] = roles[failed].model_copy(update={"failures": roles[failed].failures - 1})
            roles[lost] = roles[lost].model_copy(update={"disruptions": roles[lost].disruptions + 1})
            counted[lost] = LOST_LATE
            by_slot |= {(life.role, life.index): life.model_copy(update={"end": "lost"}) for life in lives}
    return Records(by_slot, roles, counted)


def open_lives(records: Records, groups: Iterable[Group], pods: Pods, now: datetime) -> Records:
    """Gives every group without a life its next one, unless something holds it back."""
    attempt = records.attempt
    opened = dict(records.by_slot)
    for group in groups:
        if not records.needs_life(group) or hold_on(records, group, pods, now) is not None:
            continue
        before = [life.life for life in records.of(group)] + [pod.life for pod in pods.among(group)]
        earlier = [attempt] if ROLES[group[0][0]].trainable else []  # an attempt follows all of every stage
        life = 1 + max(before + earlier, default=0)
        opened |= {(role, index): InstanceRecord(role=role, index=index, life=life) for role, index in group}
    return replace(records, by_slot=opened)


@dataclass(frozen=True)
class Hold:
    """Why a next life must wait."""

    reason: str
    message: str
    until: datetime | None
    """None: until the API shows something else."""


def hold_on(records: Records, group: Group, pods: Pods, now: datetime) -> Hold | None:
    """What keeps the group's next life waiting: a back-off after an error, or an older life that may still write."""
    lead = group[0][0]
    failed = any(life.end == "failed" for life in records.of(group))
    until = max((_tries_again(records.roles[role]) for role in dict(group)), default=None) if failed else None
    if until is not None and now < until:
        return Hold("BackingOff", f"{lead} tries again at {until:%H:%M:%S} UTC after an error", until)
    if not ROLES[lead].writes:
        return None  # its successor has another name and need not wait
    alive = [pod for pod in pods.among(group) if is_alive(pod, now)]
    if not alive:
        return None
    ends = [pod.gone_by for pod in alive if pod.gone_by is not None and pod.gone_by > now]
    message = f"{lead} waits for {', '.join(sorted(pod.name for pod in alive))} to end"
    return Hold("Fencing", message, max(ends, default=None))


def backoff(failures: int) -> timedelta:
    """10 s, 20 s, 40 s, ... up to 5 minutes."""
    doublings: int = 2 ** min(failures - 1, 10)
    return min(FIRST_BACKOFF * doublings, LONGEST_BACKOFF)


def _with_uid(record: InstanceRecord, pods: Pods) -> InstanceRecord:
    pod = pods.of(record) if record.uid is None else None
    return record if pod is None else record.model_copy(update={"uid": pod.uid})


def _with_end(role: RoleStatus, termination: Termination, now: datetime) -> RoleStatus:
    if termination.end == "failed":
        return role.model_copy(update={"failures": role.failures + 1, "last_failure_at": now})
    return role.model_copy(update={"disruptions": role.disruptions + 1})


def _moment(role: RoleStatus) -> float:
    """When the role's last error was counted, as a number to compare."""
    return role.last_failure_at.timestamp() if role.last_failure_at is not None else 0.0


def _tries_again(role: RoleStatus) -> datetime:
    if role.last_failure_at is None:
        return datetime.min.replace(tzinfo=UTC)
    return role.last_failure_at + backoff(role.failures)


def _cause(lives: list[InstanceRecord], pods: Pods) -> tuple[str, Termination] | None:
    """What ended the life of a group, and whose it was; None while it goes on.

    A gang that loses a node also shows errors of the peers: those are no failures. Of several errors the one counts
    that does not merely tell of another.
    """
    if not lives or any(life.end is not None for life in lives):
        return None
    found = [(life.role, end) for life in lives if (end := _termination(life, pods)) is not None]
    bad = [(role, end) for role, end in found if end.end != "succeeded"]
    if bad:
        return min(bad, key=lambda pair: (pair[1].end != "lost", not pair[1].final, pair[1].is_secondary))
    if len(found) == len(lives):
        return lives[0].role, Termination("failed", "EndedEarly", "it ended well although its stage still runs")
    return None


def _lost_role(lives: list[InstanceRecord], pods: Pods) -> str | None:
    found = [pods.of(life) for life in lives]
    return next((pod.role for pod in found if pod and not pod.ended and (pod.node_lost or pod.disrupted)), None)


def _termination(life: InstanceRecord, pods: Pods) -> Termination | None:
    pod = pods.of(life)
    if pod is not None:
        return termination_of(pod)
    return VANISHED if life.uid is not None else None
