"""Whether the job is over: it has done all its stages, or cannot go on."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from alignment_api.contract.roles import ROLES
from alignment_api.contract.status import AlignmentJobStatus
from alignment_operator.plan.admission import misfit
from alignment_operator.plan.fates import fate_of, is_alive
from alignment_operator.plan.ledger import Ledger
from alignment_operator.plan.stages import Course
from alignment_operator.plan.types import Observed


@dataclass(frozen=True)
class Verdict:
    """The job is over."""

    type: Literal["Complete", "Failed"]
    reason: str
    """CamelCase word."""
    message: str
    """What happened and what to do."""


def judge(observed: Observed, course: Course, ledger: Ledger, now: datetime) -> Verdict | None:
    """The verdict on a job, if there is one."""
    if course.current is None:
        return Verdict("Complete", "StagesDone", "every stage ended well")
    return (
        _mistake(observed, ledger)
        or _misfit(observed, course, ledger)
        or _over_budget(observed, ledger, now)
        or _overdue(observed, now)
    )


def active_time(status: AlignmentJobStatus, now: datetime) -> timedelta:
    """How long the job has run, suspended time not counted."""
    running = now - status.clocked_at if status.clocked_at is not None else timedelta(0)
    return timedelta(seconds=status.active_seconds) + running


def _mistake(observed: Observed, ledger: Ledger) -> Verdict | None:
    """Read from the pods, not from the counted ends: the pod of a gang that can tell may end after one that cannot."""
    for pod in observed.pods:
        line = ledger.lines.get((pod.role, pod.index))
        fate = fate_of(pod)
        if fate is not None and fate.final and line is not None and line.life == pod.life:
            return Verdict("Failed", fate.reason, f"{pod.role}: {fate.message}")
    return None


def _misfit(observed: Observed, course: Course, ledger: Ledger) -> Verdict | None:
    stage = course.current
    if (
        stage is None
        or not ROLES[stage.lead].accelerated
        or any(line.role == stage.lead for line in ledger.lines.values())
    ):
        return None
    problem = misfit(observed, stage)
    return Verdict("Failed", "DoesNotFit", f"does not fit: {problem}") if problem is not None else None


def _over_budget(observed: Observed, ledger: Ledger, now: datetime) -> Verdict | None:
    """A gang is judged when all of it has ended: an error may yet turn out to be the loss of a peer's node."""
    budgets = observed.job.spec.budgets
    for role in ledger.roles.values():
        if ROLES[role.name].trainable and any(is_alive(p, now) for p in observed.pods if ROLES[p.role].trainable):
            continue
        last = _last_word(observed, ledger, role.name)
        if role.failures > budgets.failures:
            return Verdict(
                "Failed",
                "TooManyFailures",
                f"{role.name}: {role.failures} failures, budgets.failures is {budgets.failures}; last: {last}",
            )
        if role.disruptions > budgets.disruptions:
            return Verdict(
                "Failed",
                "TooManyDisruptions",
                f"{role.name}: {role.disruptions} disruptions, budgets.disruptions is {budgets.disruptions}; "
                f"last: {last}",
            )
    return None


def _last_word(observed: Observed, ledger: Ledger, role: str) -> str:
    if role in ledger.last_fates:
        return f"{ledger.last_fates[role].reason}: {ledger.last_fates[role].message}"
    ended = [(pod.life, fate) for pod in observed.pods if pod.role == role and (fate := fate_of(pod)) is not None]
    if not ended:
        return "see the logs of its pods"
    fate = max(ended, key=lambda pair: pair[0])[1]
    return f"{fate.reason}: {fate.message}"


def _overdue(observed: Observed, now: datetime) -> Verdict | None:
    limit = observed.job.spec.active_deadline_seconds
    if limit is None or active_time(observed.job.status, now) < timedelta(seconds=limit):
        return None
    return Verdict(
        "Failed",
        "DeadlineExceeded",
        f"still in stage {observed.job.status.stage} after activeDeadlineSeconds: {limit}; "
        "its checkpoints stay: a new job may start from them by checkpoint.resumeFrom",
    )
