"""Where the job is in its course of stages."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.roles import Stage
from alignment_api.contract.status import StageStatus
from alignment_api.derived.stages import stages_of
from alignment_operator.plan.fates import fate_of
from alignment_operator.plan.ledger import Ledger, groups_of, pod_of
from alignment_operator.plan.types import PodView


@dataclass(frozen=True)
class Course:
    """The stages so far and the one that runs."""

    stages: tuple[StageStatus, ...]
    current: Stage | None
    """None: all of them have ended well."""
    has_begun: bool
    """The current stage starts in this very pass."""


def follow(job: AlignmentJob, ledger: Ledger, pods: tuple[PodView, ...], now: datetime) -> tuple[Course, Ledger]:
    """The course of the job, and the ledger with the lives of a stage that ends now closed."""
    statuses = {stage.name: stage for stage in job.status.stages}
    for stage in stages_of(job.spec):
        status = statuses.get(stage.name)
        if status is None:
            statuses |= {} if job.spec.suspend else {stage.name: StageStatus(name=stage.name, started_at=now)}
            return Course(tuple(statuses.values()), stage, not job.spec.suspend), ledger
        if status.finished_at is not None:
            continue
        if not lead_succeeded(job, stage, ledger, pods):
            return Course(tuple(statuses.values()), stage, False), ledger
        statuses[stage.name] = status.model_copy(update={"finished_at": now})
        ledger = close_stage(ledger, stage)
    return Course(tuple(statuses.values()), None, False), ledger


def lead_succeeded(job: AlignmentJob, stage: Stage, ledger: Ledger, pods: Iterable[PodView]) -> bool:
    """Whether every pod of the lead's newest life ended well, even one that was told to go just then."""
    fates = []
    for place in (place for group in groups_of(job.spec, stage) for place in group if place[0] == stage.lead):
        line = ledger.lines.get(place)
        pod = pod_of(line, pods) if line is not None else None
        fates.append(fate_of(pod) if pod is not None and pod.stage == stage.name else None)
    return all(fate is not None and fate.end == "succeeded" for fate in fates)


def close_stage(ledger: Ledger, stage: Stage) -> Ledger:
    """The lead's lives ended well, those of its helpers are not needed any more."""
    ledger = ledger.closed([place for place in ledger.lines if place[0] == stage.lead], "succeeded")
    return ledger.removed([place for place in ledger.lines if place[0] in stage.helpers])
