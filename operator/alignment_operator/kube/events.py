"""Events for people: one for each transition of a job, none for a pass that changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from alignment_api.job import API_VERSION, KIND, AlignmentJob
from alignment_api.status import AlignmentJobStatus, Condition
from alignment_operator.kube.client import UNAVAILABLE, KubeClient, Manifest
from alignment_operator.kube.paths import collection

COMPONENT = "alignment-operator"
BAD_WHEN = {"Admitted": "False", "PoolsAvailable": "False", "ObjectsCreated": "False", "Failed": "True"}
"""Condition -> the status that deserves a Warning, and an Event for each new reason."""
MESSAGE_CHARACTERS = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Note:
    """What an Event says."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


def transitions(before: AlignmentJobStatus, after: AlignmentJobStatus) -> Iterator[Note]:
    """What has changed that a person would want to know."""
    known = {condition.type: condition for condition in before.conditions}
    for condition in after.conditions:
        was = known.get(condition.type)
        bad = BAD_WHEN.get(condition.type) == condition.status
        if not (bad and _reason(was) != condition.reason) and _status(was) == condition.status:
            continue
        text = condition.message or f"{condition.type} is {condition.status}"
        yield Note("Warning" if bad else "Normal", condition.reason, text)
    if after.stage != before.stage and after.stage is not None:
        yield Note("Normal", "StageStarted", f"stage {after.stage} starts")
    if after.attempt > before.attempt > 0 and after.stage == before.stage:
        step = after.checkpoint.step if after.checkpoint else 0
        yield Note("Warning", "AttemptStarted", f"attempt {after.attempt} starts from step {step}")


def _reason(condition: Condition | None) -> str | None:
    return None if condition is None else condition.reason


def _status(condition: Condition | None) -> str:
    """A condition that was never set does not hold."""
    return "False" if condition is None else condition.status


class EventPoster:
    """Posts Events; one that cannot be posted is logged, for nothing but a person's view depends on it."""

    def __init__(self, client: KubeClient, instance: str) -> None:
        self._client = client
        self._instance = instance

    async def post(self, job: AlignmentJob, notes: Iterable[Note], now: datetime) -> None:
        """Post these notes about `job`."""
        path = collection("Event", job.metadata.namespace)
        for note in notes:
            try:
                await self._client.create(path, build_event(job, note, now, self._instance))
            except UNAVAILABLE as error:
                log.warning("event not posted", extra={"reason": note.reason, "error": str(error)})


def build_event(job: AlignmentJob, note: Note, now: datetime, instance: str) -> Manifest:
    """The Event object of a note."""
    metadata = job.metadata
    time = now.isoformat(timespec="seconds")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{metadata.name}-", "namespace": metadata.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": metadata.namespace,
            "name": metadata.name,
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
        },
        "type": note.kind,
        "reason": note.reason,
        "message": note.message[:MESSAGE_CHARACTERS],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": instance,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
