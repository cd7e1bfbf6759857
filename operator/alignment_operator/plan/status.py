"""The status that a pass derives. The same observation gives the same status."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.status import AlignmentJobStatus, Artifacts, Condition, Phase, RoleStatus
from alignment_api.derived.learning_rate import learning_rate_of
from alignment_operator.places import makes_output, makes_storage, output_source, storage_source
from alignment_operator.plan.admission import missing_nodes
from alignment_operator.plan.conditions import (
    Statement,
    checkpoint_verified,
    data_ready,
    date_conditions,
    functions_offline,
    gang_scheduling,
    image_pinned,
    objects_created,
    roles_ready,
    suspended,
    training,
)
from alignment_operator.plan.deadlines import active_time
from alignment_operator.plan.dependencies import Readiness
from alignment_operator.plan.ending import Ending
from alignment_operator.plan.lives import Blocked
from alignment_operator.plan.progress import PROGRESS_EVERY, Standing, finished, of_a_new_stage, progress_of
from alignment_operator.plan.records import Records
from alignment_operator.plan.snapshot import Snapshot
from alignment_operator.plan.stages import StageProgress
from alignment_operator.plan.terminations import is_alive
from alignment_operator.plan.types import Observed, PodView
from alignment_operator.plan.volumes import single_node_claims


@dataclass(frozen=True)
class Findings:
    """What a pass has found out, besides what it observed."""

    stages: StageProgress
    records: Records
    blocked: tuple[Blocked, ...]
    ending: Ending | None = None


def derive_status(snapshot: Snapshot, found: Findings) -> AlignmentJobStatus:
    """The status of a job that was admitted."""
    job, stages, now = snapshot.job, found.stages, snapshot.now
    status = of_a_new_stage(job.status) if stages.has_begun and stages.current and stages.current.gang else job.status
    wanted = (snapshot.pods.of(record) for record in found.records.open())
    pods = tuple(pod for pod in wanted if pod is not None)
    roles = _roles(job, found, pods)
    standing = _standing(snapshot, status, found, pods)
    progress = standing.progress
    over = found.ending is not None
    conditions = date_conditions(job, _statements(snapshot, status, found, pods), now)
    update: dict[str, Any] = {
        "observed_generation": job.metadata.generation,
        "phase": _phase(conditions, pods, stages),
        "conditions": conditions,
        "algorithm": job.spec.algorithm.name,
        "learning_rate": status.learning_rate or learning_rate_of(job.spec),
        "stage": stages.begun[-1].name if stages.begun else None,
        "stages": stages.begun,
        "attempt": found.records.attempt,
        "roles": roles,
        "ready": f"{sum(role.ready for role in roles)}/{sum(role.desired for role in roles)}",
        "instances": tuple(record for _, record in sorted(found.records.by_slot.items())),
        "avoided_nodes": found.records.avoided,
        "progress": progress,
        "progress_text": f"{progress.step}/{progress.total_steps}" if progress and progress.total_steps else None,
        "eta": None if over or progress is None else duration_text(progress.eta_seconds),
        "stepped_at": None if over else standing.stepped_at,
        "metrics": standing.metrics,
        "artifacts": _artifacts(snapshot.observed, stages),
        "platform": None if snapshot.observed.own_files else status.platform or snapshot.observed.platform.pinned(),
        "single_node_claims": (
            single_node_claims(snapshot.observed) if status.started_at is None else status.single_node_claims
        ),
        "finished_at": now if over else None,
        **_clock(job, now, over),
    }
    return status.model_copy(update=update)


def refused_status(observed: Observed, refusals: tuple[str, ...], now: datetime) -> AlignmentJobStatus:
    """The status of a job of which nothing was created."""
    refused = Statement("Admitted", "False", "Refused", "; ".join(refusals))
    return observed.job.status.model_copy(
        update={
            "observed_generation": observed.job.metadata.generation,
            "phase": "Pending",
            "algorithm": observed.job.spec.algorithm.name,
            "conditions": date_conditions(observed.job, [refused, *_pools(observed)], now),
        }
    )


def duration_text(seconds: int | None) -> str | None:
    """2h10m, 12m, 45s: as short as a column wants it."""
    if seconds is None:
        return None
    if seconds < 60:
        return f"{seconds}s"
    minutes = seconds // 60
    return f"{minutes}m" if minutes < 60 else f"{minutes // 60}h{minutes % 60:02d}m"


def _roles(job: AlignmentJob, found: Findings, pods: tuple[PodView, ...]) -> tuple[RoleStatus, ...]:
    current = found.stages.current
    wanted = current.roles if current is not None and found.ending is None and not job.spec.suspend else {}
    desired = {name: role.replicas for name, role in wanted.items()}
    ready = Counter(pod.role for pod in pods if pod.ready)
    return tuple(
        role.model_copy(update={"desired": desired.get(name, 0), "ready": ready[name]})
        for name, role in found.records.roles.items()
    )


def _standing(snapshot: Snapshot, status: AlignmentJobStatus, found: Findings, pods: tuple[PodView, ...]) -> Standing:
    current = found.stages.current
    if current is None:
        return Standing(finished(status.progress), status.metrics, None)
    progress, since = (None, None) if found.stages.has_begun else (status.progress, status.stepped_at)
    lead = next((pod for pod in pods if pod.role == current.stage.lead and pod.index == 0), None)
    may_work = not Readiness(snapshot, current, found.records).must_wait(current.stage.lead)
    every = timedelta(0) if snapshot.observed.own_files else PROGRESS_EVERY  # a laptop has no watchers to spare
    return progress_of(Standing(progress, status.metrics, since), lead, may_work, snapshot.now, every)


def _statements(
    snapshot: Snapshot, status: AlignmentJobStatus, found: Findings, pods: tuple[PodView, ...]
) -> list[Statement]:
    observed, ending, current = snapshot.observed, found.ending, found.stages.current
    problem = ending.message if ending is not None and ending.type == "Failed" else None
    statements = [
        Statement("Admitted", "True", "Admitted", "volumes, pools and sizes were checked"),
        *objects_created(observed.refused),
        *_pools(observed),
        data_ready(status, problem),
        training(pods),
        *checkpoint_verified(status),
        *image_pinned(status, snapshot.pods),
        *functions_offline(snapshot.pods),
    ]
    if ending is not None:
        over = Statement(ending.type, "True", ending.reason, ending.message)
        return [*statements, Statement("RolesReady", "False", "JobOver"), over]
    if current is not None and not observed.own_files:
        statements += gang_scheduling(observed.platform, len(current.gang))
    statements += suspended(snapshot.job, sum(is_alive(pod, snapshot.now) for pod in snapshot.pods))
    if snapshot.spec.suspend:
        return [*statements, Statement("RolesReady", "False", "Suspended")]
    desired = len(current.slots) if current is not None else 0
    return [*statements, roles_ready(pods, desired, found.blocked, found.records.avoided)]


def _pools(observed: Observed) -> tuple[Statement, ...]:
    if observed.nodes is None:
        message = "this operator may not list nodes, so it cannot tell whether the pools have any; pods wait for them"
        return (Statement("PoolsAvailable", "Unknown", "NodesNotListed", message),)
    if not observed.nodes:
        return ()
    empty = missing_nodes(observed)
    if not empty:
        return (Statement("PoolsAvailable", "True", "NodesFound"),)
    message = (
        f"no node now in pool {', '.join(empty)}; its pods wait, unless it scales from zero check its nodeSelector"
    )
    return (Statement("PoolsAvailable", "False", "NoNodesNow", message),)


def _phase(conditions: tuple[Condition, ...], pods: tuple[PodView, ...], stages: StageProgress) -> Phase:
    true = {condition.type for condition in conditions if condition.status == "True"}
    ends: tuple[Phase, ...] = ("Failed", "Complete", "Suspended")
    for phase in ends:
        if phase in true:
            return phase
    begun = any(pod.phase == "Running" for pod in pods) or any(stage.finished_at for stage in stages.begun)
    return "Running" if begun else "Pending"


def _artifacts(observed: Observed, stages: StageProgress) -> Artifacts:
    """Where results are, as the spec would name them. On a laptop the runtime names its own folders."""
    job, platform = observed.job, observed.platform
    done = {stage.name for stage in stages.begun if stage.finished_at is not None}
    own_storage = observed.own_files and makes_storage(job)
    own_output = observed.own_files and makes_output(job, platform)
    output = None if own_output else output_source(job, platform)
    return Artifacts(
        storage=None if own_storage else str(storage_source(job)),
        model=f"{output}/model" if output and "train" in done else None,
        evaluation=f"{output}/evaluation.json" if output and "evaluate" in done else None,
    )


def _clock(job: AlignmentJob, now: datetime, over: bool) -> dict[str, Any]:
    """Added to only when the clock stops, so that a pass that changes nothing writes nothing."""
    status = job.status
    if over or job.spec.suspend:
        return {
            "started_at": status.started_at,
            "active_seconds": active_time(status, now).total_seconds(),
            "clocked_at": None,
        }
    return {"started_at": status.started_at or now, "clocked_at": status.clocked_at or now}
