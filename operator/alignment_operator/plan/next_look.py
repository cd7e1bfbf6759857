"""When to look again though nothing tells us to."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from alignment_api.contract.status import AlignmentJobStatus
from alignment_operator.plan.deadlines import LOST_AFTER, active_time, ready_by, silence_deadline, stall_deadline
from alignment_operator.plan.dependencies import PATIENCE
from alignment_operator.plan.snapshot import Snapshot
from alignment_operator.plan.status import Findings
from alignment_operator.plan.terminations import given_up_at, is_alive

POLL = timedelta(seconds=5)
"""Between polls of running pods: a person who watches sees progress; a thousand jobs are 200 requests a second."""
ADMISSION = timedelta(seconds=5)
"""Until a refused job is looked at again: a missing claim sends no event, and job and claim may come in one file."""
ADMISSION_MOST = timedelta(minutes=2)
"""Later on: each look reads the job and its claims, and nobody may mend it for weeks."""
RESYNC = timedelta(minutes=1)
"""At the latest, while the job is not over: node counts and lost events."""
SOONEST = timedelta(seconds=1)
"""A deadline that is a fraction of a second away is not worth a pass of its own."""


def next_look(snapshot: Snapshot, found: Findings) -> timedelta | None:
    """Time to the soonest of all deadlines; None when the job is over."""
    if found.ending is not None:
        return None
    waits = [moment - snapshot.now for moment in _moments(snapshot, found) if moment > snapshot.now]
    if any(pod.phase == "Running" and not pod.node_lost for pod in snapshot.pods):
        waits.append(POLL)
    return max(min([*waits, RESYNC]), SOONEST)


def next_admission(status: AlignmentJobStatus, now: datetime) -> timedelta:
    """Half of the time for which the job has been refused already. A change of the job itself is looked at at once."""
    since = next(condition.last_transition_time for condition in status.conditions if condition.type == "Admitted")
    return min(max((now - since) / 2, ADMISSION), ADMISSION_MOST)


def _moments(snapshot: Snapshot, found: Findings) -> Iterator[datetime]:
    now, status = snapshot.now, snapshot.job.status
    yield from (each.until for each in found.blocked if each.until is not None)
    stall, silence = stall_deadline(snapshot), silence_deadline(snapshot)
    yield from () if status.stepped_at is None else (status.stepped_at + stall,)
    for record in found.records.open():
        by = ready_by(snapshot, record)
        yield from () if by is None else (by,)
        if record.unready_since is not None:
            yield from (record.unready_since + wait for wait in (LOST_AFTER, PATIENCE, silence))
    for pod in snapshot.pods:
        if pod.gone_by is not None and is_alive(pod, now):
            yield pod.gone_by if pod.node_lost else given_up_at(pod.gone_by)
    if snapshot.spec.active_deadline_seconds is not None and status.clocked_at is not None:
        yield now + timedelta(seconds=snapshot.spec.active_deadline_seconds) - active_time(status, now)
