"""Conditions: what holds, since when, and what a person should know about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.roles import ROLES
from alignment_api.contract.status import AlignmentJobStatus, AvoidedNode, Condition, ConditionType
from alignment_operator.plan.image_pins import is_pullable, runs_another
from alignment_operator.plan.lives import Blocked
from alignment_operator.plan.pods import waits_for
from alignment_operator.plan.types import PodView, Refusal

LISTED = 5
"""Waiting pods that a message names; hundreds wait for the same reason."""


@dataclass(frozen=True)
class Statement:
    """A condition without its time."""

    type: ConditionType
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""


def date_conditions(job: AlignmentJob, statements: Iterable[Statement], now: datetime) -> tuple[Condition, ...]:
    """The statements with the moment at which their status last changed; a condition that nobody speaks of stays."""
    dated = {condition.type: condition for condition in job.status.conditions}
    for said in statements:
        before = dated.get(said.type)
        unchanged = before is not None and before.status == said.status
        dated[said.type] = Condition(
            type=said.type,
            status=said.status,
            reason=said.reason,
            message=said.message,
            last_transition_time=before.last_transition_time if before is not None and unchanged else now,
            observed_generation=job.metadata.generation,
        )
    return tuple(dated.values())


def data_ready(status: AlignmentJobStatus, problem: str | None) -> Statement:
    """Whether `prepare` has found the data good; `problem` is what the job failed of, if it has."""
    if status.data is None and problem is not None:
        return Statement("DataReady", "False", "JobFailed", problem)
    if status.data is None:
        return Statement("DataReady", "False", "NotChecked", "prepare has not yet reported on the data")
    found = f"{status.data.rows} rows to train on, {status.data.evaluation_rows} held out ({status.data.format})"
    others = {
        "invalid rows dropped": status.data.invalid_rows,
        "rows dropped that are too long": status.data.too_long_rows,
        "prompts cut": status.data.truncated_rows,
    }
    counted = "".join(f", {count} {what}" for what, count in others.items() if count)
    return Statement("DataReady", "True", "DataChecked", found + counted)


def objects_created(refused: tuple[Refusal, ...] | None) -> tuple[Statement, ...]:
    """Whether the apiserver takes what the job needs; nothing is said before it was asked."""
    if refused is None:
        return ()
    if not refused:
        return (Statement("ObjectsCreated", "True", "Created"),)
    words = [f"{refusal.what}: {refusal.message}" for refusal in refused]
    more = [f"and {len(words) - LISTED} more"] if len(words) > LISTED else []
    return (Statement("ObjectsCreated", "False", refused[0].reason, "; ".join([*words[:LISTED], *more])),)


def image_pinned(status: AlignmentJobStatus, pods: Iterable[PodView]) -> tuple[Statement, ...]:
    """Whether all pods of the job run the same image, whatever becomes of its tag; nothing is said before one runs.

    pods: all that there are. That two digests ran stays true when their pods are gone.
    """
    if not status.images or any((c.type, c.reason) == ("ImagePinned", "DigestsDiffer") for c in status.conditions):
        return ()
    others = sorted((pod.name, pod.image_id, pin) for pod in pods if (pin := runs_another(status.images, pod)))
    if others:
        name, found, pin = others[0]
        message = (
            f"{name} runs {found} where pods before it ran {pin.id}: image `{pin.image}` was moved, or a node has an "
            "older one; name the image by its digest (spec.image: repository@sha256:...)"
        )
        return (Statement("ImagePinned", "False", "DigestsDiffer", message),)
    local = [pin for pin in status.images if not is_pullable(pin)]
    if local:
        message = f"image `{local[0].image}` is on its node without a registry's digest: {local[0].id} is only compared"
        return (Statement("ImagePinned", "Unknown", "NoRegistryDigest", message),)
    return (
        Statement("ImagePinned", "True", "Pinned", f"what names `{status.images[0].image}` runs {status.images[0].id}"),
    )


def functions_offline(pods: Iterable[PodView]) -> tuple[Statement, ...]:
    """Said where `prepare` found that reward functions which ask for no network keep that of their pod."""
    kept = next((pod.outcome.functions_network for pod in pods if pod.outcome and pod.outcome.functions_network), None)
    if kept is None:
        return ()
    message = (
        f"reward functions keep the network of their pod, for the kernel takes it from no process there ({kept}); what "
        "they reach is left to the NetworkPolicy. Let the pool's podTemplate name a seccompProfile that allows "
        "unshare, or write network: true where it is meant"
    )
    return (Statement("FunctionsOffline", "False", "NetworkKept", message),)


def roles_ready(
    pods: tuple[PodView, ...], desired: int, blocked: tuple[Blocked, ...], avoided: tuple[AvoidedNode, ...]
) -> Statement:
    """Whether all pods of the stage are ready; if not, what they wait for.

    pods: those of the open lives. avoided: nodes that new pods keep away from.
    """
    ready = sum(pod.ready for pod in pods)
    if ready == desired:
        return Statement("RolesReady", "True", "AllReady", f"{ready} of {desired} pods are ready")
    waiting = [pod for pod in pods if not pod.ready]
    reasons = [each.reason for each in blocked] + [waits_for(pod) for pod in waiting] or ["Starting"]
    words = [each.message for each in blocked] + [_words(pod) for pod in waiting]
    if len(pods) < desired and not blocked:
        words.append(f"{desired - len(pods)} of {desired} pods are being made")
    words += [f"keeps away from node {n.name} until {n.until:%H:%M:%S} UTC ({n.reason})" for n in avoided]
    more = [f"and {len(words) - LISTED} more"] if len(words) > LISTED else []
    return Statement("RolesReady", "False", reasons[0], "; ".join([*words[:LISTED], *more]))


def training(pods: tuple[PodView, ...]) -> Statement:
    """Whether the trainee is at work."""
    trainees = [pod for pod in pods if ROLES[pod.role].trainable]
    if trainees and all(pod.ready for pod in trainees):
        return Statement("Training", "True", "Training", f"attempt {trainees[0].life} runs")
    if trainees:
        return Statement("Training", "False", "Starting", f"attempt {trainees[0].life} is not ready")
    return Statement("Training", "False", "NotRunning")


def gang_scheduling(platform: Platform, pods: int) -> tuple[Statement, ...]:
    """Whether the pods of the stage's gang are scheduled all or none; nothing is said of a gang of one."""
    if pods < 2:
        return ()
    if platform.gang == "podGroup":
        return (
            Statement(
                "GangScheduling", "True", "PodGroup", f"the gang's {pods} pods are scheduled together or not at all"
            ),
        )
    message = (
        f"the gang's {pods} pods are scheduled one by one: where room is short, some may hold nodes and wait for the "
        "others; the platform's `gang: podGroup` schedules them together"
    )
    return (Statement("GangScheduling", "False", "NotConfigured", message),)


def checkpoint_verified(status: AlignmentJobStatus) -> tuple[Statement, ...]:
    """The last verified checkpoint of the stage that trains, or trained last."""
    if status.checkpoint is None:
        told = any(condition.type == "CheckpointVerified" for condition in status.conditions)
        return (Statement("CheckpointVerified", "False", "NotYet", "this stage has saved nothing yet"),) if told else ()
    message = f"step {status.checkpoint.step}, sealed at {status.checkpoint.verified_at:%Y-%m-%d %H:%M:%S} UTC"
    return (Statement("CheckpointVerified", "True", "Verified", message),)


def suspended(job: AlignmentJob, still_alive: int) -> tuple[Statement, ...]:
    """Whether the job stands still; said once the user has asked for it."""
    if job.spec.suspend and still_alive:
        return (Statement("Suspended", "False", "Suspending", f"{still_alive} pods are saving and ending"),)
    if job.spec.suspend:
        return (
            Statement("Suspended", "True", "Suspended", "no pod runs; suspend: false goes on from the last checkpoint"),
        )
    if any(condition.type == "Suspended" for condition in job.status.conditions):
        return (Statement("Suspended", "False", "Resumed"),)
    return ()


def _words(pod: PodView) -> str:
    """What a waiting pod says: the kubelet's or the scheduler's word, else what its process is busy with."""
    what = pod.message or (pod.status.state if pod.status is not None else None)
    return f"{pod.role} {pod.index}: {waits_for(pod)}" + (f" ({what})" if what else "")
