"""The ledger: which lives there were, how each ended, and what that has used of the budgets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from alignment_api.contract.roles import ROLES, Stage
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import AlignmentJobStatus, InstanceRecord, RoleStatus
from alignment_api.derived.sizing import replicas_of
from alignment_operator.plan.fates import LOST_LATE, VANISHED, Fate, fate_of, is_alive
from alignment_operator.plan.types import PodView

Place = tuple[str, int]
"""A role and an index."""
Group = tuple[Place, ...]
"""Places that live and die together: the trainable pods of a stage (actor and critic), or one frozen pod."""
End = Literal["succeeded", "failed", "lost", "removed"]

FIRST_BACKOFF = timedelta(seconds=10)
"""After the first error of a role; doubled by each further one."""
LONGEST_BACKOFF = timedelta(minutes=5)
"""Long enough to spare the cluster, short enough to still be watched."""


@dataclass(frozen=True)
class Ledger:
    """What status remembers of pods. Values only; each step gives a new one."""

    lines: Mapping[Place, InstanceRecord]
    roles: Mapping[str, RoleStatus]
    """Tallies by role; absent: nothing was ever counted."""
    last_fates: Mapping[str, Fate]
    """The ends that were counted in this pass, by role."""

    def closed(self, places: Iterable[Place], end: End) -> Ledger:
        """With the open lines of these places ended."""
        lines = dict(self.lines)
        for place in places:
            if place in lines and lines[place].end is None:
                lines[place] = lines[place].model_copy(update={"end": end})
        return replace(self, lines=lines)

    def removed(self, places: Iterable[Place]) -> Ledger:
        """With the open lives of these places ended by the plan, but for those whose pod was never seen.

        Such a pod may have been asked for a moment ago. Its line stays open until it shows itself, so that no
        successor is made beside it.
        """
        return self.closed([place for place in places if self.lines[place].uid is not None], "removed")

    def counted(self, group: Group, role: str, fate: Fate, now: datetime) -> Ledger:
        """With one end of this group counted, to the role that caused it, however many of its pods ended."""
        tally = self.roles[role]
        if fate.end == "failed":
            tally = tally.model_copy(update={"failures": tally.failures + 1, "last_failure_at": now})
        else:
            tally = tally.model_copy(update={"disruptions": tally.disruptions + 1})
        ledger = replace(self, roles={**self.roles, role: tally}, last_fates={**self.last_fates, role: fate})
        return ledger.closed(group, fate.end)

    def corrected(self, group: Group, lost: str) -> Ledger:
        """With the group's counted error made a disruption of the role that was lost; still one end."""
        failed = max(dict(group), key=self._failed_last)
        roles = dict(self.roles)
        roles[failed] = roles[failed].model_copy(update={"failures": roles[failed].failures - 1})
        roles[lost] = roles[lost].model_copy(update={"disruptions": roles[lost].disruptions + 1})
        lines = {place: self.lines[place].model_copy(update={"end": "lost"}) for place in group}
        return replace(
            self, lines={**self.lines, **lines}, roles=roles, last_fates={**self.last_fates, lost: LOST_LATE}
        )

    def _failed_last(self, role: str) -> float:
        """When the role's last error was counted, as a number to compare."""
        moment = self.roles[role].last_failure_at
        return moment.timestamp() if moment is not None else 0.0

    @property
    def attempt(self) -> int:
        """Lives of the gangs so far: one count for all stages."""
        return max((line.life for line in self.lines.values() if ROLES[line.role].trainable), default=0)


def read_ledger(status: AlignmentJobStatus, roles: Mapping[str, RoleStatus], pods: Iterable[PodView]) -> Ledger:
    """The ledger as recorded, with the UIDs of pods that are seen for the first time.

    roles: an empty tally for every role of the job, for those that have none yet.
    """
    lines = {(line.role, line.index): line for line in status.instances}
    for pod in pods:
        line = lines.get((pod.role, pod.index))
        if line is not None and line.uid is None and line.life == pod.life:
            lines[pod.role, pod.index] = line.model_copy(update={"uid": pod.uid})
    return Ledger(lines, {**roles, **{role.name: role for role in status.roles}}, {})


def groups_of(spec: AlignmentJobSpec, stage: Stage) -> tuple[Group, ...]:
    """The stage's places, those of its trainable roles together: one gang, its lead first."""
    places = [(role, index) for role in stage.roles for index in range(replicas_of(spec, role))]
    gang = tuple(place for place in places if ROLES[place[0]].trainable)
    frozen = tuple((place,) for place in places if not ROLES[place[0]].trainable)
    return (gang, *frozen) if gang else frozen


def pod_of(line: InstanceRecord, pods: Iterable[PodView]) -> PodView | None:
    """The pod of this very life."""
    return next(
        (
            pod
            for pod in pods
            if (pod.role, pod.index, pod.life) == (line.role, line.index, line.life) and line.uid in (None, pod.uid)
        ),
        None,
    )


def count_ends(ledger: Ledger, groups: Iterable[Group], pods: tuple[PodView, ...], now: datetime) -> Ledger:
    """Counts each end once: a line that has its `end` is not counted again.

    A gang that loses a node shows errors of the peers at once and the loss only when the node's grace period is over.
    The peers' error is then made a disruption. No next life can have been opened: it waits for the lost pod.
    """
    for group in groups:
        lines = [ledger.lines[place] for place in group if place in ledger.lines]
        cause = _cause(lines, pods)
        if cause is not None:
            ledger = ledger.counted(group, *cause, now)
        elif lines and all(line.end == "failed" for line in lines) and (lost := _lost_role(lines, pods)) is not None:
            ledger = ledger.corrected(group, lost)
    return ledger


def open_lives(ledger: Ledger, groups: Iterable[Group], pods: tuple[PodView, ...], now: datetime) -> Ledger:
    """Gives every group without a life its next one, unless something holds it back."""
    lines = dict(ledger.lines)
    for group in groups:
        if not needs_life(ledger, group) or hold_on(ledger, group, pods, now) is not None:
            continue
        before = [lines[place].life for place in group if place in lines]
        seen = [pod.life for pod in pods if (pod.role, pod.index) in group]
        earlier = [ledger.attempt] if ROLES[group[0][0]].trainable else []  # an attempt follows all of every stage
        life = 1 + max(before + seen + earlier, default=0)
        lines |= {(role, index): InstanceRecord(role=role, index=index, life=life) for role, index in group}
    return replace(ledger, lines=lines)


def needs_life(ledger: Ledger, group: Group) -> bool:
    """Whether the group has no open life."""
    return any(place not in ledger.lines or ledger.lines[place].end is not None for place in group)


@dataclass(frozen=True)
class Hold:
    """Why a next life must wait."""

    reason: str
    message: str
    until: datetime | None
    """None: until the API shows something else."""


def hold_on(ledger: Ledger, group: Group, pods: tuple[PodView, ...], now: datetime) -> Hold | None:
    """What keeps the group's next life waiting: a back-off after an error, or an older life that may still write."""
    lead = group[0][0]
    failed = any(place in ledger.lines and ledger.lines[place].end == "failed" for place in group)
    until = max((_tries_again(ledger.roles[role]) for role in dict(group)), default=None) if failed else None
    if until is not None and now < until:
        return Hold("BackingOff", f"{lead} tries again at {until:%H:%M:%S} UTC after an error", until)
    if not ROLES[lead].writes:
        return None  # its successor has another name and need not wait
    alive = [pod for pod in pods if (pod.role, pod.index) in group and is_alive(pod, now)]
    if not alive:
        return None
    ends = [pod.gone_by for pod in alive if pod.gone_by is not None and pod.gone_by > now]
    message = f"{lead} waits for {', '.join(sorted(pod.name for pod in alive))} to end"
    return Hold("Fencing", message, max(ends, default=None))


def backoff(failures: int) -> timedelta:
    """10 s, 20 s, 40 s, ... up to 5 minutes."""
    doublings: int = 2 ** min(failures - 1, 10)
    return min(FIRST_BACKOFF * doublings, LONGEST_BACKOFF)


def _tries_again(tally: RoleStatus) -> datetime:
    if tally.last_failure_at is None:
        return datetime.min.replace(tzinfo=UTC)
    return tally.last_failure_at + backoff(tally.failures)


def _cause(lines: list[InstanceRecord], pods: tuple[PodView, ...]) -> tuple[str, Fate] | None:
    """What ended the life of a group, and whose it was; None while it goes on.

    A gang that loses a node also shows errors of the peers: those are no failures. Of several errors the one counts
    that does not merely tell of another.
    """
    if not lines or any(line.end is not None for line in lines):
        return None
    fates = [(line.role, fate) for line in lines if (fate := _line_fate(line, pods)) is not None]
    bad = [(role, fate) for role, fate in fates if fate.end != "succeeded"]
    if bad:
        return min(bad, key=lambda pair: (pair[1].end != "lost", not pair[1].final, pair[1].is_hearsay))
    if len(fates) == len(lines):
        return lines[0].role, Fate("failed", "EndedEarly", "it ended well although its stage still runs")
    return None


def _lost_role(lines: list[InstanceRecord], pods: tuple[PodView, ...]) -> str | None:
    found = [pod_of(line, pods) for line in lines]
    return next((pod.role for pod in found if pod and not pod.ended and (pod.node_lost or pod.disrupted)), None)


def _line_fate(line: InstanceRecord, pods: tuple[PodView, ...]) -> Fate | None:
    pod = pod_of(line, pods)
    if pod is not None:
        return fate_of(pod)
    return VANISHED if line.uid is not None else None
