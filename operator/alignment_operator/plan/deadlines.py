"""Deadlines of the spec: for the whole job, for getting ready, for the next step.

On a laptop the first alone counts: it may sleep, and somebody sits before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta

from alignment_api.contract.status import AlignmentJobStatus, InstanceRecord
from alignment_operator.plan.layout import Group, Slot, StageLayout
from alignment_operator.plan.pods import waits_for
from alignment_operator.plan.records import Records
from alignment_operator.plan.snapshot import Snapshot
from alignment_operator.plan.terminations import Termination
from alignment_operator.plan.types import PodView

LEAST_STALL = timedelta(minutes=30)
"""Collectives end by then, and an evaluation may lie between two steps."""
LOST_AFTER = timedelta(seconds=45)
"""From when the control plane has lost sight of a node to when its writers are given up, if nobody else has done so
(their tolerations run out after 30 s): after 50 s to lose sight, within 100 s of the node's death."""
USUAL_STEPS = 10
"""A step that takes as long as ten is late."""
FIRST_STALL = timedelta(hours=3)
"""As long as no step says what is usual: a first one of a large online job warms servers up and may take an hour."""
CHANGES = {
    "ErrImagePull": "name an image that its nodes can pull: spec.image, imagePullSecrets in the pool's podTemplate",
    "ImagePullBackOff": "name an image that its nodes can pull: spec.image, imagePullSecrets in the pool's podTemplate",
    "InvalidImageName": "mend the name in spec.image",
    "CreateContainerConfigError": "create the Secret or ConfigMap that it names (spec.credentials)",
    "Unschedulable": "ask for less in spec.roles.{role}, add nodes to pool {pool}, or wait longer",
    "NotCreated": "see condition ObjectsCreated; most often the namespace's quota is too small",
    "Starting": "see its log; where its start takes this long, wait longer",
    "Pending": "see `kubectl describe pod {pod}`; most often a volume cannot be mounted",
}
"""What a pod waits for -> what to change."""


def active_time(status: AlignmentJobStatus, now: datetime) -> timedelta:
    """How long the job has run, suspended time not counted."""
    running = now - status.clocked_at if status.clocked_at is not None else timedelta(0)
    return timedelta(seconds=status.active_seconds) + running


def ready_by(snapshot: Snapshot, record: InstanceRecord) -> datetime | None:
    """When this life must be ready; None where it was, or need not be yet. Rows that are prepared count as progress."""
    begun, moved = record.starting_since, snapshot.job.status.stepped_at
    if begun is None or record.end is not None:
        return None
    if record.role == "prepare" and moved is not None:
        begun = max(begun, moved)
    return begun + timedelta(seconds=snapshot.spec.ready_deadline_seconds)


def never_ready(snapshot: Snapshot, current: StageLayout, records: Records) -> str | None:
    """What has not become ready in time, why, and what to change; None while the stage can go on.

    Of servers one of a role is enough. Want of spot nodes is waited out, by a gang as a whole.
    """
    for slots, needs_all in () if snapshot.observed.own_files else _teams(current):
        team = records.of(slots)
        late = [record for record in team if _is_late(snapshot, record)]
        if not late or (not needs_all and len(late) < len(slots)) or _wants_spot(snapshot, current, team):
            continue
        late.sort(key=lambda record: _ORDER.index(_phase(snapshot.pods.of(record))))
        return _not_ready(snapshot, current, late[0])
    return None


def given_up(snapshot: Snapshot, current: StageLayout, records: Records) -> Mapping[Slot, Termination]:
    """Lives that do not end by themselves: on a lost node, without an answer, without a step, or kept from a node that
    may take them again."""
    limit, now = stall_deadline(snapshot), snapshot.now
    since, silent_since, lost_since = now - limit, now - silence_deadline(snapshot), now - LOST_AFTER
    found = {}
    for record in () if snapshot.observed.own_files else records.open():
        pod, slot, silent = snapshot.pods.of(record), (record.role, record.index), record.unready_since
        if pod is None or pod.ended or pod.gone_by is not None:
            continue
        if pod.node_lost and silent is not None and silent <= lost_since:
            found[slot] = Termination("disruption", "NodeLost", f"its node {pod.node} is out of reach", pod.node)
        elif record.starting_since is None and silent is not None and silent <= silent_since:
            found[slot] = _stall(pod, f"its process has not answered for {_minutes(snapshot.now - silent)}")
        elif slot in current.gang[:1] and _has_not_stepped(snapshot, pod, since):
            found[slot] = _stall(pod, f"no step for {_minutes(limit)} (see spec.stallDeadlineSeconds)")
        elif (free := _needlessly_avoided(pod, records)) and waits_for(pod) == "Unschedulable":
            message = f"no other node takes it than {', '.join(free)}, which may again"
            found[slot] = Termination("rejection", "AvoidanceOver", message)
    return found


def _needlessly_avoided(pod: PodView, records: Records) -> tuple[str, ...]:
    """Nodes that the pod keeps away from for good, and that new ones do not any more: its volume may be there, or the
    pods beside which it must run."""
    avoided = {node.name for node in records.avoided}
    return tuple(node for node in pod.avoids if node not in avoided)


def stall_deadline(snapshot: Snapshot) -> timedelta:
    """How long a trainee may be without a step."""
    limit, progress = snapshot.spec.stall_deadline_seconds, snapshot.job.status.progress
    if limit is not None:
        return timedelta(seconds=limit)
    if progress is None or not progress.eta_seconds or progress.step >= progress.total_steps:
        return FIRST_STALL
    usual = timedelta(seconds=progress.eta_seconds) / (progress.total_steps - progress.step)
    return max(LEAST_STALL, USUAL_STEPS * usual)


def silence_deadline(snapshot: Snapshot) -> timedelta:
    """How long a process that was ready may leave its probe without an answer."""
    return min(stall_deadline(snapshot), LEAST_STALL)


def _teams(current: StageLayout) -> Iterator[tuple[Group, bool]]:
    """Slots that stand in for each other, and whether all of them are needed."""
    if current.gang:
        yield current.gang, True
    for name, role in current.roles.items():
        if not role.nature.trainable:
            yield tuple((name, index) for index in range(role.replicas)), role.nature.writes


def _is_late(snapshot: Snapshot, record: InstanceRecord) -> bool:
    by = ready_by(snapshot, record)
    return by is not None and by <= snapshot.now


def _wants_spot(snapshot: Snapshot, current: StageLayout, team: Iterable[InstanceRecord]) -> bool:
    """Whether one of them waits for a spot node."""
    return any(
        current.roles[record.role].pool == "spot" and waits_for(snapshot.pods.of(record)) == "Unschedulable"
        for record in team
        if record.end is None
    )


_ORDER = (None, "Pending", "Running", "Succeeded", "Failed")
"""A pod that runs may wait for one that does not: that one is named."""


def _phase(pod: PodView | None) -> str | None:
    return pod.phase if pod is not None else None


def _not_ready(snapshot: Snapshot, current: StageLayout, record: InstanceRecord) -> str:
    pod, seconds = snapshot.pods.of(record), snapshot.spec.ready_deadline_seconds
    reason = waits_for(pod)
    said = f"{reason} ({pod.message})" if pod is not None and pod.message else reason
    pool, name = current.roles[record.role].pool, pod.name if pod is not None else ""
    change = CHANGES.get(reason, CHANGES["Pending"]).format(role=record.role, pool=pool, pod=name)
    return (
        f"{record.role} {record.index} has not become ready in readyDeadlineSeconds: {seconds}: {said}; {change}; "
        "its checkpoints stay: a new job may start from them by checkpoint.resumeFrom"
    )


def _has_not_stepped(snapshot: Snapshot, pod: PodView, since: datetime) -> bool:
    """Its process answers, and the step that it names is no further than the one that stands in the status."""
    status = snapshot.job.status
    polled = pod.status.progress if pod.status is not None else None
    if polled is None or status.progress is None or status.stepped_at is None:
        return False
    return polled.step == status.progress.step < polled.total_steps and status.stepped_at <= since


def _stall(pod: PodView, message: str) -> Termination:
    return Termination("own", "Stalled", f"{message}; see the log of pod {pod.name}", pod.node)


def _minutes(limit: timedelta) -> str:
    return (
        f"{limit.total_seconds() / 60:.0f} min" if limit >= timedelta(minutes=1) else f"{limit.total_seconds():.0f} s"
    )
