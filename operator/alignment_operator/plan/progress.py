"""What the job's processes have told: by polls while they run, by their outcome when they end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.roles import ROLES, StageName
from alignment_api.contract.status import AlignmentJobStatus, CheckpointStatus, EvaluationReport, Progress, StageStatus
from alignment_operator.plan.image_pins import learn_images
from alignment_operator.plan.types import PodView

Fact = TypeVar("Fact")
PROGRESS_EVERY = timedelta(seconds=15)
"""A person who watches sees it move; a thousand jobs are 67 writes a second at most."""


def learn(job: AlignmentJob, pods: Iterable[PodView]) -> AlignmentJob:
    """The job with what its pods have told in its status. What no pod tells any more stays as it was recorded.

    Who may tell what: `prepare` its facts, until it has ended; a trainee its checkpoints, until a newer attempt may
    have claimed the storage. An outcome stands before what the same pod said in a poll (docs/adr/0024).
    """
    by_life = sorted(pods, key=lambda pod: pod.life)
    status = job.status
    trainees = [
        pod for pod in by_life if ROLES[pod.role].trainable and pod.stage == status.stage and pod.life >= status.attempt
    ]
    checkpoint = _newest([status.checkpoint, *(_told(pod, "checkpoint") for pod in trainees)])
    facts = {
        **_prepared(status, by_life),
        "checkpoint": checkpoint,
        "furthest_step": max(status.furthest_step, checkpoint.step if checkpoint is not None else 0),
        "evaluation": _last([status.evaluation, _evaluated(by_life, "evaluate")]),
        "images": learn_images(status.images, by_life),
        "stages": tuple(_with_result(stage, by_life) for stage in status.stages),
    }
    return job.model_copy(update={"status": status.model_copy(update=facts)})


def _prepared(status: AlignmentJobStatus, by_life: list[PodView]) -> dict[str, object]:
    """The facts of `prepare`. They are final with the outcome that ended its stage."""
    if any(stage.name == "prepare" and stage.finished_at is not None for stage in status.stages):
        return {}
    telling = [pod for pod in by_life if pod.role == "prepare"]
    facts = ("data", "model", "precision", "micro_batch", "reward_models")
    return {fact: _last([getattr(status, fact), *(_told(pod, fact) for pod in telling)]) for fact in facts}


def of_a_new_stage(status: AlignmentJobStatus) -> AlignmentJobStatus:
    """Steps, figures and checkpoints of an earlier stage's trainee are not those of the next one's."""
    return status.model_copy(update={"progress": None, "metrics": {}, "checkpoint": None, "furthest_step": 0})


@dataclass(frozen=True)
class Standing:
    """How far the running stage is."""

    progress: Progress | None
    metrics: dict[str, float]
    stepped_at: datetime | None
    """When the progress last moved, or the work on it last began; None while nothing can move it."""


def progress_of(
    recorded: Standing, lead: PodView | None, may_work: bool, now: datetime, every: timedelta = PROGRESS_EVERY
) -> Standing:
    """What stands in the status after a poll of the lead's first pod.

    It changes with the step alone, and not more often than people look: rates and estimates flicker at every poll, and
    a status that is written costs every watcher an event.
    may_work: what the lead needs is there. every: between two changes of a run that goes on.
    """
    polled = lead.status if lead is not None else None
    if lead is None or lead.phase != "Running" or not may_work:
        return replace(recorded, stepped_at=None)
    if polled is None or polled.progress is None:
        return recorded
    before, found, since = recorded.progress, polled.progress, recorded.stepped_at
    if before is not None and (found.step, found.total_steps) == (before.step, before.total_steps):
        return replace(recorded, stepped_at=since or now)
    forward = before is not None and before.step < found.step < found.total_steps
    if forward and since is not None and now < since + every:
        return recorded
    return Standing(found, polled.metrics or recorded.metrics, now)


def finished(progress: Progress | None) -> Progress | None:
    """The progress of a stage that ended well: the last poll came before its last step."""
    if progress is None:
        return None
    return progress.model_copy(update={"step": progress.total_steps or progress.step, "eta_seconds": 0})


def _with_result(stage: StageStatus, pods: list[PodView]) -> StageStatus:
    evaluation = _last([stage.evaluation, _evaluated(pods, stage.name)])
    return stage.model_copy(update={"evaluation": evaluation})


def _evaluated(pods: list[PodView], stage: StageName) -> EvaluationReport | None:
    return _last([pod.outcome.evaluation for pod in pods if pod.stage == stage and pod.outcome is not None])


def _told(pod: PodView, fact: str) -> object:
    ended = getattr(pod.outcome, fact, None)
    return ended if ended is not None else getattr(pod.status, fact, None)


def _last(values: list[Fact | None]) -> Fact | None:
    return next((value for value in reversed(values) if value is not None), None)


def _newest(values: list[object]) -> CheckpointStatus | None:
    found = [value for value in values if isinstance(value, CheckpointStatus)]
    return max(found, key=lambda checkpoint: checkpoint.verified_at, default=None)
