"""Conditions: what holds, since when, and what a person should know about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from alignment_api.job import AlignmentJob
from alignment_api.platform import Platform
from alignment_api.roles import ROLES
from alignment_api.status import AlignmentJobStatus, Condition, ConditionType
from alignment_operator.plan.ledger import Hold
from alignment_operator.plan.types import PodView, Refusal

LISTED = 5
"""Waiting pods that a message names; hundreds wait for the same reason."""


@dataclass(frozen=True)
class Claim:
    """A condition without its time."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""


def date_conditions(job: AlignmentJob, claims: Iterable[Claim], now: datetime) -> tuple[Condition, ...]:
    """The claims with the moment at which their status last changed; a condition that nobody claims stays."""
    dated = {condition.type: condition for condition in job.status.conditions}
    for claim in claims:
        before = dated.get(claim.type)
        unchanged = before is not None and before.status == claim.status
        dated[claim.type] = Condition(
            type=claim.type,
            status=claim.status,
            reason=claim.reason,
            message=claim.message,
            last_transition_time=before.last_transition_time if before is not None and unchanged else now,
            observed_generation=job.metadata.generation,
        )
    return tuple(dated.values())


def claim_data(status: AlignmentJobStatus, problem: str | None) -> Claim:
    """Whether `prepare` has found the data good; `problem` is what the job failed of, if it has."""
    if status.data is None and problem is not None:
        return Claim("DataReady", "False", "JobFailed", problem)
    if status.data is None:
        return Claim("DataReady", "False", "NotChecked", "prepare has not yet reported on the data")
    found = f"{status.data.rows} rows to train on, {status.data.evaluation_rows} held out ({status.data.format})"
    dropped = f", {status.data.invalid_rows} invalid rows dropped" if status.data.invalid_rows else ""
    return Claim("DataReady", "True", "DataChecked", found + dropped)


def claim_objects(refused: tuple[Refusal, ...] | None) -> tuple[Claim, ...]:
    """Whether the apiserver takes what the job needs; nothing is said before it was asked."""
    if refused is None:
        return ()
    if not refused:
        return (Claim("ObjectsCreated", "True", "Created"),)
    words = [f"{refusal.what}: {refusal.message}" for refusal in refused]
    more = [f"and {len(words) - LISTED} more"] if len(words) > LISTED else []
    return (Claim("ObjectsCreated", "False", refused[0].reason, "; ".join([*words[:LISTED], *more])),)


def claim_roles(pods: tuple[PodView, ...], desired: int, holds: tuple[Hold, ...]) -> Claim:
    """Whether all pods of the stage are ready; if not, what they wait for.

    pods: those of the open lives.
    """
    ready = sum(pod.ready for pod in pods)
    if ready == desired:
        return Claim("RolesReady", "True", "AllReady", f"{ready} of {desired} pods are ready")
    waiting = [pod for pod in pods if not pod.ready]
    reasons = [hold.reason for hold in holds] + [_reason(pod) for pod in waiting] or ["Starting"]
    words = [hold.message for hold in holds] + [_words(pod) for pod in waiting]
    if len(pods) < desired and not holds:
        words.append(f"{desired - len(pods)} of {desired} pods are being made")
    more = [f"and {len(words) - LISTED} more"] if len(words) > LISTED else []
    return Claim("RolesReady", "False", reasons[0], "; ".join([*words[:LISTED], *more]))


def claim_training(pods: tuple[PodView, ...]) -> Claim:
    """Whether the trainee is at work."""
    trainees = [pod for pod in pods if ROLES[pod.role].trainable]
    if trainees and all(pod.ready for pod in trainees):
        return Claim("Training", "True", "Training", f"attempt {trainees[0].life} runs")
    if trainees:
        return Claim("Training", "False", "Starting", f"attempt {trainees[0].life} is not ready")
    return Claim("Training", "False", "NotRunning")


def claim_gang(platform: Platform, pods: int) -> tuple[Claim, ...]:
    """Whether the pods of the stage's gang are scheduled all or none; nothing is said of a gang of one."""
    if pods < 2:
        return ()
    if platform.gang == "podGroup":
        return (
            Claim("GangScheduling", "True", "PodGroup", f"the gang's {pods} pods are scheduled together or not at all"),
        )
    message = (
        f"the gang's {pods} pods are scheduled one by one: where room is short, some may hold nodes and wait for the "
        "others; the platform's `gang: podGroup` schedules them together"
    )
    return (Claim("GangScheduling", "False", "NotConfigured", message),)


def claim_checkpoint(status: AlignmentJobStatus) -> tuple[Claim, ...]:
    """The last verified checkpoint of the stage that trains, or trained last."""
    if status.checkpoint is None:
        told = any(condition.type == "CheckpointVerified" for condition in status.conditions)
        return (Claim("CheckpointVerified", "False", "NotYet", "this stage has saved nothing yet"),) if told else ()
    message = f"step {status.checkpoint.step}, read back at {status.checkpoint.verified_at:%Y-%m-%d %H:%M:%S} UTC"
    return (Claim("CheckpointVerified", "True", "Verified", message),)


def claim_suspended(job: AlignmentJob, still_alive: int) -> tuple[Claim, ...]:
    """Whether the job stands still; said once the user has asked for it."""
    if job.spec.suspend and still_alive:
        return (Claim("Suspended", "False", "Suspending", f"{still_alive} pods are saving and ending"),)
    if job.spec.suspend:
        return (
            Claim("Suspended", "True", "Suspended", "no pod runs; suspend: false goes on from the last checkpoint"),
        )
    if any(condition.type == "Suspended" for condition in job.status.conditions):
        return (Claim("Suspended", "False", "Resumed"),)
    return ()


def _reason(pod: PodView) -> str:
    if pod.gated:
        return "Gated"
    return pod.reason or ("Starting" if pod.phase == "Running" else "Pending")


def _words(pod: PodView) -> str:
    """What a waiting pod says: the kubelet's or the scheduler's word, else what its process is busy with."""
    what = pod.message or (pod.status.state if pod.status is not None else None)
    return f"{pod.role} {pod.index}: {_reason(pod)}" + (f" ({what})" if what else "")
