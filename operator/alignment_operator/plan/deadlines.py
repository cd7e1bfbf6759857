"""When to look again though nothing tells us to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from alignment_api.contract.job import AlignmentJob
from alignment_operator.plan.gates import PATIENCE
from alignment_operator.plan.ledger import Hold
from alignment_operator.plan.types import PodView
from alignment_operator.plan.verdict import active_time

POLL = timedelta(seconds=5)
"""Between polls of running pods: a person who watches sees progress; a thousand jobs are 200 requests a second."""
ADMISSION = timedelta(seconds=5)
"""Until a refused job is looked at again: a missing claim sends no event, and job and claim may come in one file."""
RESYNC = timedelta(minutes=1)
"""At the latest, while the job is not over: node counts and lost events."""
SOONEST = timedelta(seconds=1)
"""A deadline that is a fraction of a second away is not worth a pass of its own."""


def next_look(
    job: AlignmentJob, pods: Iterable[PodView], holds: Iterable[Hold], is_over: bool, now: datetime
) -> timedelta | None:
    """Time to the soonest of all deadlines; None when the job is over and nothing of it is left to wait for."""
    pods = tuple(pods)
    waits = [moment - now for moment in _moments(pods, holds) if moment > now]
    if not is_over:
        waits.append(RESYNC)
        if any(pod.phase == "Running" and not pod.node_lost for pod in pods):
            waits.append(POLL)
        if job.spec.active_deadline_seconds is not None and job.status.clocked_at is not None:
            waits.append(timedelta(seconds=job.spec.active_deadline_seconds) - active_time(job.status, now))
    return max(min(waits), SOONEST) if waits else None


def _moments(pods: Iterable[PodView], holds: Iterable[Hold]) -> Iterator[datetime]:
    yield from (hold.until for hold in holds if hold.until is not None)
    yield from (pod.created_at + PATIENCE for pod in pods if pod.gated)
    yield from (pod.gone_by for pod in pods if pod.gone_by is not None and not pod.ended and pod.node_lost)
