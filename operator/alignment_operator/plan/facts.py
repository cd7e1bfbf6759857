"""What the job's processes have told: by polls while they run, by their outcome when they end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from alignment_api.job import AlignmentJob
from alignment_api.roles import StageName
from alignment_api.status import AlignmentJobStatus, CheckpointStatus, EvaluationReport, Progress, StageStatus
from alignment_operator.plan.types import PodView

Fact = TypeVar("Fact")


def learn(job: AlignmentJob, pods: Iterable[PodView]) -> AlignmentJob:
    """The job with what its pods have told in its status. What no pod tells any more stays as it was recorded."""
    by_life = sorted(pods, key=lambda pod: pod.life)
    status = job.status
    current = [pod for pod in by_life if pod.stage == status.stage]  # steps of another stage are other steps
    facts = {
        "data": _last([status.data, *(_told(pod, "data") for pod in by_life)]),
        "model": _last([status.model, *(_told(pod, "model") for pod in by_life)]),
        "precision": _last([status.precision, *(_told(pod, "precision") for pod in by_life)]),
        "reward_models": _last([status.reward_models, *(_told(pod, "reward_models") for pod in by_life)]),
        "checkpoint": _newest([status.checkpoint, *(_told(pod, "checkpoint") for pod in current)]),
        "evaluation": _last([status.evaluation, _evaluated(by_life, "evaluate")]),
        "stages": tuple(_with_result(stage, by_life) for stage in status.stages),
    }
    return job.model_copy(update={"status": status.model_copy(update=facts)})


def begin_training(status: AlignmentJobStatus) -> AlignmentJobStatus:
    """Steps, figures and checkpoints of an earlier stage's trainee are not those of the next one's."""
    return status.model_copy(update={"progress": None, "metrics": {}, "checkpoint": None})


def progress_of(
    recorded: Progress | None, metrics: dict[str, float], lead: PodView | None
) -> tuple[Progress | None, dict[str, float]]:
    """Progress and metrics after a poll of the lead's first pod.

    They change with the step alone: rates and estimates flicker at every poll, and a status that is written at every
    poll costs every watcher an event.
    """
    polled = lead.status if lead is not None else None
    if polled is None or polled.progress is None:
        return recorded, metrics
    if recorded is not None and (polled.progress.step, polled.progress.total_steps) == (
        recorded.step,
        recorded.total_steps,
    ):
        return recorded, metrics
    return polled.progress, polled.metrics or metrics


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
