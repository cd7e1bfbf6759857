"""The status that a pass derives. The same observation gives the same status."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from alignment_api.job import AlignmentJob
from alignment_api.sizing import replicas_of
from alignment_api.status import AlignmentJobStatus, Artifacts, Condition, Phase, Progress, RoleStatus
from alignment_operator.places import makes_output, makes_storage, output_source, storage_source
from alignment_operator.plan.admission import missing_nodes
from alignment_operator.plan.conditions import (
    Claim,
    claim_checkpoint,
    claim_data,
    claim_gang,
    claim_objects,
    claim_roles,
    claim_suspended,
    claim_training,
    date_conditions,
)
from alignment_operator.plan.facts import finished, progress_of
from alignment_operator.plan.fates import is_alive
from alignment_operator.plan.instances import gang_size
from alignment_operator.plan.ledger import Hold, Ledger, pod_of
from alignment_operator.plan.stages import Course
from alignment_operator.plan.types import Observed, PodView
from alignment_operator.plan.verdict import Verdict, active_time
from alignment_operator.plan.volumes import single_node_claims


@dataclass(frozen=True)
class Findings:
    """What a pass has found out, besides what it observed."""

    course: Course
    ledger: Ledger
    verdict: Verdict | None
    holds: tuple[Hold, ...]
    now: datetime


def derive_status(observed: Observed, found: Findings) -> AlignmentJobStatus:
    """The status of a job that was admitted."""
    job, status = observed.job, observed.job.status
    pods = _wanted_pods(observed.pods, found.ledger)
    roles = _roles(job, found, pods)
    progress, metrics = _progress(job, found, pods)
    over = found.verdict is not None
    conditions = date_conditions(job, _claims(observed, found, pods, roles), found.now)
    update: dict[str, Any] = {
        "observed_generation": job.metadata.generation,
        "phase": _phase(conditions, pods, found.course),
        "conditions": conditions,
        "algorithm": job.spec.algorithm.name,
        "stage": found.course.stages[-1].name if found.course.stages else None,
        "stages": found.course.stages,
        "attempt": found.ledger.attempt,
        "roles": roles,
        "ready": f"{sum(role.ready for role in roles)}/{sum(role.desired for role in roles)}",
        "instances": tuple(line for _, line in sorted(found.ledger.lines.items())),
        "progress": progress,
        "progress_text": f"{progress.step}/{progress.total_steps}" if progress and progress.total_steps else None,
        "eta": None if over or progress is None else duration_text(progress.eta_seconds),
        "metrics": metrics,
        "artifacts": _artifacts(observed, found.course),
        "platform": None if observed.own_files else status.platform or observed.platform.pinned(),
        "single_node_claims": single_node_claims(observed) if status.started_at is None else status.single_node_claims,
        "finished_at": found.now if over else None,
        **_clock(job, found.now, over),
    }
    return status.model_copy(update=update)


def refused_status(observed: Observed, refusals: tuple[str, ...], now: datetime) -> AlignmentJobStatus:
    """The status of a job of which nothing was created."""
    claim = Claim("Admitted", "False", "Refused", "; ".join(refusals))
    return observed.job.status.model_copy(
        update={
            "observed_generation": observed.job.metadata.generation,
            "phase": "Pending",
            "algorithm": observed.job.spec.algorithm.name,
            "conditions": date_conditions(observed.job, [claim, *_pools(observed)], now),
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


def _wanted_pods(pods: tuple[PodView, ...], ledger: Ledger) -> tuple[PodView, ...]:
    found = (pod_of(line, pods) for line in ledger.lines.values() if line.end is None)
    return tuple(pod for pod in found if pod is not None)


def _roles(job: AlignmentJob, found: Findings, pods: tuple[PodView, ...]) -> tuple[RoleStatus, ...]:
    current = found.course.current
    running = current.roles if current is not None and found.verdict is None and not job.spec.suspend else ()
    return tuple(
        role.model_copy(
            update={
                "desired": replicas_of(job.spec, role.name) if role.name in running else 0,
                "ready": sum(pod.ready for pod in pods if pod.role == role.name),
            }
        )
        for role in found.ledger.roles.values()
    )


def _progress(
    job: AlignmentJob, found: Findings, pods: tuple[PodView, ...]
) -> tuple[Progress | None, dict[str, float]]:
    status, current = job.status, found.course.current
    if current is None:
        return finished(status.progress), status.metrics
    recorded = None if found.course.has_begun else status.progress
    lead = next((pod for pod in pods if pod.role == current.lead and pod.index == 0), None)
    return progress_of(recorded, status.metrics, lead)


def _claims(
    observed: Observed, found: Findings, pods: tuple[PodView, ...], roles: tuple[RoleStatus, ...]
) -> list[Claim]:
    job, verdict = observed.job, found.verdict
    claims = [Claim("Admitted", "True", "Admitted", "volumes, pools and sizes were checked")]
    problem = verdict.message if verdict is not None and verdict.type == "Failed" else None
    claims += claim_objects(observed.refused)
    claims += [*_pools(observed), claim_data(job.status, problem), claim_training(pods), *claim_checkpoint(job.status)]
    if verdict is not None:
        claims += [
            Claim("RolesReady", "False", "JobOver"),
            Claim(verdict.type, "True", verdict.reason, verdict.message),
        ]
        return claims
    if found.course.current is not None and not observed.own_files:
        claims += claim_gang(observed.platform, gang_size(job.spec, found.course.current))
    alive = sum(is_alive(pod, found.now) for pod in observed.pods)
    claims += claim_suspended(job, alive)
    desired = sum(role.desired for role in roles)
    claims.append(
        Claim("RolesReady", "False", "Suspended") if job.spec.suspend else claim_roles(pods, desired, found.holds)
    )
    return claims


def _pools(observed: Observed) -> tuple[Claim, ...]:
    if not observed.nodes:
        return ()
    empty = missing_nodes(observed)
    if not empty:
        return (Claim("PoolsAvailable", "True", "NodesFound"),)
    message = (
        f"no node now in pool {', '.join(empty)}; its pods wait, unless it scales from zero check its nodeSelector"
    )
    return (Claim("PoolsAvailable", "False", "NoNodesNow", message),)


def _phase(conditions: tuple[Condition, ...], pods: tuple[PodView, ...], course: Course) -> Phase:
    true = {condition.type for condition in conditions if condition.status == "True"}
    ends: tuple[Phase, ...] = ("Failed", "Complete", "Suspended")
    for phase in ends:
        if phase in true:
            return phase
    begun = any(pod.phase == "Running" for pod in pods) or any(stage.finished_at for stage in course.stages)
    return "Running" if begun else "Pending"


def _artifacts(observed: Observed, course: Course) -> Artifacts:
    """Where results are, as the spec would name them. On a laptop the runtime names its own folders."""
    job, platform = observed.job, observed.platform
    done = {stage.name for stage in course.stages if stage.finished_at is not None}
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
