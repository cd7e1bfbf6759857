"""Events for people: one for each transition of a job, none for a pass that changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from alignment_api.contract.job import API_VERSION, KIND, AlignmentJob
from alignment_api.contract.status import AlignmentJobStatus, Condition
from alignment_operator.kube.client import UNAVAILABLE, ApiError, KubeClient, Manifest
from alignment_operator.kube.leadership import ServedByAnother
from alignment_operator.kube.paths import collection

COMPONENT = "alignment-operator"
BAD_WHEN = {
    "Admitted": "False",
    "PoolsAvailable": "False",
    "ObjectsCreated": "False",
    "ImagePinned": "False",
    "FunctionsOffline": "False",
    "Failed": "True",
}
"""Condition -> the status that deserves a Warning, and an Event for each new reason."""
MESSAGE_CHARACTERS = 1024
QUEUE_EVENTS = 1000
"""Some 2 MB. A storm is cut off here."""
POSTERS = 4
"""Where one Event is tried again and again, three others go on."""

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
    """Posts Events in the background. Nothing but a person's view depends on them, so nothing waits for them.

    They stand in a queue of their own, and where that is full (Events are not taken, or not fast enough) are dropped.
    """

    def __init__(self, client: KubeClient, instance: str, dropped: Callable[[], None]) -> None:
        """dropped: told of each Event that nobody will see."""
        self._client = client.lane("events")
        self._instance = instance
        self._dropped = dropped
        self._queue: asyncio.Queue[Manifest] = asyncio.Queue(QUEUE_EVENTS)

    def post(self, job: AlignmentJob, notes: Iterable[Note], now: datetime) -> None:
        """Post these notes about `job`, soon."""
        for note in notes:
            try:
                self._queue.put_nowait(build_event(job, note, now, self._instance))
            except asyncio.QueueFull:
                self._drop(note.reason, "the queue of Events is full")

    async def run(self) -> None:
        """Post until cancelled."""
        async with asyncio.TaskGroup() as posters:
            for _ in range(POSTERS):
                posters.create_task(self._post_each())

    async def drain(self, seconds: float) -> None:
        """Wait for what was posted, no longer than this."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._queue.join(), seconds)

    async def _post_each(self) -> None:
        while True:
            event = await self._queue.get()
            try:
                await self._client.create(collection("Event", event["metadata"]["namespace"]), event)
            except (*UNAVAILABLE, ServedByAnother) as error:
                told = isinstance(error, ApiError) and error.reason == "AlreadyExists"  # by a try whose answer was lost
                if not told:
                    self._drop(event["reason"], str(error) or repr(error))
            finally:
                self._queue.task_done()

    def _drop(self, reason: str, why: str) -> None:
        self._dropped()
        log.info("event dropped", extra={"reason": reason, "error": why})


def build_event(job: AlignmentJob, note: Note, now: datetime, instance: str) -> Manifest:
    """The Event object of a note. Its name says what it tells and of which version of the job, so that the same word,
    sent twice or by two operators, is one Event."""
    metadata = job.metadata
    told = (metadata.uid, metadata.resource_version, note.kind, note.reason, note.message)
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
    time = now.isoformat(timespec="seconds")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata.name}.{digest}", "namespace": metadata.namespace},
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
