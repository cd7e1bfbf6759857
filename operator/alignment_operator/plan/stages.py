"""Where the job is in its course of stages."""

from __future__ import annotations

from dataclasses import dataclass

from alignment_api.contract.status import StageStatus
from alignment_operator.plan.layout import StageLayout
from alignment_operator.plan.pods import Pods
from alignment_operator.plan.records import Records
from alignment_operator.plan.snapshot import Snapshot
from alignment_operator.plan.terminations import termination_of


@dataclass(frozen=True)
class StageProgress:
    """The stages so far and the one that runs."""

    begun: tuple[StageStatus, ...]
    """Those that have begun."""
    current: StageLayout | None
    """None: all of them have ended well."""
    has_begun: bool
    """The current stage starts in this very pass."""
    records: Records
    """With the lives closed of stages that have ended in this pass."""


def follow(snapshot: Snapshot, records: Records) -> StageProgress:
    """Which stage runs now. The end of one and the beginning of the next are lasting progress."""
    suspend, now = snapshot.spec.suspend, snapshot.now
    statuses = {stage.name: stage for stage in snapshot.job.status.stages}
    for current in snapshot.layout.stages:
        name = current.stage.name
        status = statuses.get(name)
        if status is None:
            statuses |= {} if suspend else {name: StageStatus(name=name, started_at=now)}
            return StageProgress(tuple(statuses.values()), current, not suspend, records.refilled(now))
        if status.finished_at is not None:
            continue
        if not lead_succeeded(current, records, snapshot.pods):
            return StageProgress(tuple(statuses.values()), current, False, records)
        statuses[name] = status.model_copy(update={"finished_at": now})
        records = close_stage(current, records)
    return StageProgress(tuple(statuses.values()), None, False, records)


def lead_succeeded(current: StageLayout, records: Records, pods: Pods) -> bool:
    """Whether every pod of the lead's newest life ended well, even one that was told to go just then."""
    lead = current.stage.lead
    for index in range(current.roles[lead].replicas):
        record = records.by_slot.get((lead, index))
        pod = pods.of(record) if record is not None else None
        end = termination_of(pod) if pod is not None and pod.stage == current.stage.name else None
        if end is None or end.kind != "success":
            return False
    return True


def close_stage(current: StageLayout, records: Records) -> Records:
    """The lead's lives ended well, those of its helpers are not needed any more."""
    lead, helpers = current.stage.lead, current.stage.helpers
    done = records.closed([slot for slot in records.by_slot if slot[0] == lead], "succeeded")
    return done.removed([slot for slot in records.by_slot if slot[0] in helpers])
