"""Whether the job is over: it has done all its stages, or cannot go on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from alignment_api.roles import ROLES
from alignment_api.status import AlignmentJobStatus
from alignment_operator.plan.admission import misfit
from alignment_operator.plan.pods import Pods
from alignment_operator.plan.records import Records
from alignment_operator.plan.stages import Course
from alignment_operator.plan.terminations import is_alive, termination_of
from alignment_operator.plan.types import Observed


@dataclass(frozen=True)
class Ending:
    """The job is over."""

    type: Literal["Complete", "Failed"]
    reason: str
    """CamelCase word."""
    message: str
    """What happened and what to do."""


def find_ending(observed: Observed, course: Course, records: Records, pods: Pods, now: datetime) -> Ending | None:
    """How the job ends, if it does."""
    if course.current is None:
        return Ending("Complete", "StagesDone", "every stage ended well")
    return (
        _mistake(records, pods)
        or _misfit(observed, course, records)
        or _over_budget(observed, records, pods, now)
        or _overdue(observed, now)
    )


def active_time(status: AlignmentJobStatus, now: datetime) -> timedelta:
    """How long the job has run, suspended time not counted."""
    running = now - status.clocked_at if status.clocked_at is not None else timedelta(0)
    return timedelta(seconds=status.active_seconds) + running


def _mistake(records: Records, pods: Pods) -> Ending | None:
    """Read from the pods, not from the counted ends: the pod of a gang that can tell may end after one that cannot."""
    for record in records.by_slot.values():
        pod = pods.of(record)
        end = termination_of(pod) if pod is not None else None
        if end is not None and end.final:
            return Ending("Failed", end.reason, f"{record.role}: {end.message}")
    return None


def _misfit(observed: Observed, course: Course, records: Records) -> Ending | None:
    stage = course.current.stage if course.current is not None else None
    if stage is None or not ROLES[stage.lead].accelerated or (stage.lead, 0) in records.by_slot:
        return None
    problem = misfit(observed, stage)
    return Ending("Failed", "DoesNotFit", f"does not fit: {problem}") if problem is not None else None


def _over_budget(observed: Observed, records: Records, pods: Pods, now: datetime) -> Ending | None:
    """A gang is judged when all of it has ended: an error may yet turn out to be the loss of a peer's node."""
    budgets = observed.job.spec.budgets
    gang_lives = any(ROLES[pod.role].trainable and is_alive(pod, now) for pod in pods)
    for role in records.roles.values():
        within = role.failures <= budgets.failures and role.disruptions <= budgets.disruptions
        if within or (ROLES[role.name].trainable and gang_lives):
            continue
        last = _last_word(records, pods, role.name)
        if role.failures > budgets.failures:
            return Ending(
                "Failed",
                "TooManyFailures",
                f"{role.name}: {role.failures} failures, budgets.failures is {budgets.failures}; last: {last}",
            )
        if role.disruptions > budgets.disruptions:
            return Ending(
                "Failed",
                "TooManyDisruptions",
                f"{role.name}: {role.disruptions} disruptions, budgets.disruptions is {budgets.disruptions}; "
                f"last: {last}",
            )
    return None


def _last_word(records: Records, pods: Pods, role: str) -> str:
    ended = [(pod.life, end) for pod in pods if pod.role == role and (end := termination_of(pod)) is not None]
    end = records.counted.get(role) or (max(ended, key=lambda pair: pair[0])[1] if ended else None)
    return f"{end.reason}: {end.message}" if end is not None else "see the logs of its pods"


def _overdue(observed: Observed, now: datetime) -> Ending | None:
    limit = observed.job.spec.active_deadline_seconds
    if limit is None or active_time(observed.job.status, now) < timedelta(seconds=limit):
        return None
    return Ending(
        "Failed",
        "DeadlineExceeded",
        f"still in stage {observed.job.status.stage} after activeDeadlineSeconds: {limit}; "
        "its checkpoints stay: a new job may start from them by checkpoint.resumeFrom",
    )
