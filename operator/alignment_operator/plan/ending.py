"""Whether the job is over: it has done all its stages, or cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from alignment_api.contract.roles import ROLES
from alignment_api.contract.status import InstanceRecord
from alignment_operator.plan.admission import misfit
from alignment_operator.plan.deadlines import active_time, never_ready
from alignment_operator.plan.layout import StageLayout
from alignment_operator.plan.records import Records
from alignment_operator.plan.snapshot import Snapshot
from alignment_operator.plan.terminations import is_alive, termination_of


@dataclass(frozen=True)
class Ending:
    """The job is over."""

    type: Literal["Complete", "Failed"]
    reason: str
    """CamelCase word."""
    message: str
    """What happened and what to do."""


def find_ending(snapshot: Snapshot, current: StageLayout | None, records: Records) -> Ending | None:
    """How the job ends, if it does."""
    if current is None:
        return Ending("Complete", "StagesDone", "every stage ended well")
    return (
        _mistake(snapshot, records)
        or _misfit(snapshot, current, records)
        or _over_budget(snapshot, current, records)
        or _not_ready(snapshot, current, records)
        or _overdue(snapshot)
    )


def _mistake(snapshot: Snapshot, records: Records) -> Ending | None:
    """Read from the pods, not from the counted ends: the pod of a gang that can tell may end after one that cannot."""
    for record in records.by_slot.values():
        pod = snapshot.pods.of(record)
        end = termination_of(pod) if pod is not None else None
        if end is not None and end.kind == "mistake":
            return Ending("Failed", end.reason, f"{record.role}: {end.message}")
    return None


def _misfit(snapshot: Snapshot, current: StageLayout, records: Records) -> Ending | None:
    lead = current.stage.lead
    if not ROLES[lead].accelerated or (lead, 0) in records.by_slot:
        return None
    problem = misfit(snapshot.observed, current.stage)
    return Ending("Failed", "DoesNotFit", f"does not fit: {problem}") if problem is not None else None


def _over_budget(snapshot: Snapshot, current: StageLayout, records: Records) -> Ending | None:
    """What writes ends the job when it has used up either budget, servers when all of their role have used up that of
    failures."""
    for names, record in _candidates(snapshot, current, records):
        use, budgets = record.budget, snapshot.spec.budgets
        if use is not None and use.failures > budgets.failures:
            found = f"{use.failures} failures without progress, budgets.failures is {budgets.failures}"
            return Ending("Failed", "TooManyFailures", f"{names}: {found}; last: {use.last}")
        if use is not None and use.disruptions > budgets.disruptions and ROLES[record.role].writes:
            found = f"{use.disruptions} disruptions without progress, budgets.disruptions is {budgets.disruptions}"
            return Ending("Failed", "TooManyDisruptions", f"{names}: {found}; last: {use.last}")
    return None


def _candidates(snapshot: Snapshot, current: StageLayout, records: Records) -> Iterator[tuple[str, InstanceRecord]]:
    """Those whose budgets may end the job, by name, each with the record that has them.

    A gang is judged when all of it has ended: an error may yet turn out to be the loss of a peer's node.
    """
    if current.gang and not any(is_alive(pod, snapshot.now) for pod in snapshot.pods.among(current.gang)):
        yield from ((" and ".join(dict(current.gang)), record) for record in records.of(current.gang[:1]))
    for name, role in current.roles.items():
        if role.nature.trainable:
            continue
        servers = records.of(tuple((name, index) for index in range(role.replicas)))
        if len(servers) == role.replicas:
            least = min(servers, key=lambda server: server.budget.failures if server.budget else 0, default=None)
            yield from ((name, least),) if least is not None else ()


def _not_ready(snapshot: Snapshot, current: StageLayout, records: Records) -> Ending | None:
    if snapshot.spec.suspend:
        return None
    problem = never_ready(snapshot, current, records)
    return Ending("Failed", "NotReadyInTime", problem) if problem is not None else None


def _overdue(snapshot: Snapshot) -> Ending | None:
    limit, status = snapshot.spec.active_deadline_seconds, snapshot.job.status
    if limit is None or active_time(status, snapshot.now) < timedelta(seconds=limit):
        return None
    return Ending(
        "Failed",
        "DeadlineExceeded",
        f"still in stage {status.stage} after activeDeadlineSeconds: {limit}; "
        "its checkpoints stay: a new job may start from them by checkpoint.resumeFrom",
    )
