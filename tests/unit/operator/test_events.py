import asyncio
from collections import Counter
from datetime import UTC, datetime

import pytest
from aiohttp import web
from tests.unit.operator.faults import answering, refused, running, until
from tests.unit.operator.small_cluster import make_job

from alignment_api.contract.status import AlignmentJobStatus, CheckpointStatus, Condition
from alignment_operator.kube import events
from alignment_operator.kube.events import EventPoster, Note, build_event, transitions

NOW = datetime(2026, 11, 24, tzinfo=UTC)


def status(*conditions: tuple[str, str, str, str], **fields: object) -> AlignmentJobStatus:
    made = [
        Condition.model_validate(
            {"type": kind, "status": value, "reason": reason, "message": words, "lastTransitionTime": NOW}
        )
        for kind, value, reason, words in conditions
    ]
    return AlignmentJobStatus.model_validate({"conditions": made, **fields})


RUNS = ("Training", "True", "Running", "attempt 1 trains")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (status(), status(RUNS), [Note("Normal", "Running", "attempt 1 trains")]),
        (status(RUNS), status(("Training", "True", "Running", "step 2")), []),
        (status(), status(("RolesReady", "False", "Starting", "")), []),
        (status(("RolesReady", "False", "A", "")), status(("RolesReady", "False", "B", "")), []),
        (status(RUNS), status(("Training", "False", "Ended", "")), [Note("Normal", "Ended", "Training is False")]),
        (
            status(("Admitted", "False", "NoVolume", "claim a")),
            status(("Admitted", "False", "NoRoom", "98 GB")),
            [Note("Warning", "NoRoom", "98 GB")],
        ),
        (status(), status(("Failed", "True", "InvalidData", "row 7")), [Note("Warning", "InvalidData", "row 7")]),
        (status(), status(stage="prepare"), [Note("Normal", "StageStarted", "stage prepare starts")]),
        (status(attempt=0), status(attempt=1), []),
        (
            status(attempt=1),
            status(attempt=2, checkpoint=CheckpointStatus(step=40, verified_at=NOW)),
            [Note("Warning", "AttemptStarted", "attempt 2 starts from step 40")],
        ),
    ],
)
def test_events_tell_of_transitions_alone(
    before: AlignmentJobStatus, after: AlignmentJobStatus, expected: list[Note]
) -> None:
    assert list(transitions(before, after)) == expected


JOB = make_job()


def note(number: int = 0) -> Note:
    return Note("Normal", f"Reason{number}", "words")


class Dropped:
    count = 0

    def __call__(self) -> None:
        self.count += 1


def test_a_word_about_one_version_of_a_job_is_one_event() -> None:
    def name(words: str, version: str, now: datetime = NOW) -> str:
        metadata = JOB.metadata.model_copy(update={"resource_version": version})
        event = build_event(JOB.model_copy(update={"metadata": metadata}), Note("Normal", "R", words), now, "me")
        return str(event["metadata"]["name"])

    first = name("words", "7")
    assert first == name("words", "7", datetime(2027, 1, 1, tzinfo=UTC))
    assert len({first, name("other words", "7"), name("words", "8")}) == 3
    assert first.startswith("helpful.")


async def test_events_are_posted_in_the_background_and_what_exists_already_is_told() -> None:
    stored: Counter[str] = Counter()

    async def apiserver(request: web.Request) -> web.Response:
        event = await request.json()
        stored[event["reason"]] += 1
        if stored[event["reason"]] == 1 and event["reason"] == "Reason1":
            return refused(504)  # stored, and the answer is lost
        return refused(409, "AlreadyExists") if stored[event["reason"]] > 1 else web.json_response(event, status=201)

    dropped = Dropped()
    async with answering(apiserver) as client:
        poster = EventPoster(client, "me", dropped)
        poster.post(JOB, [note(0), note(1)], NOW)
        assert stored == {}
        async with running(poster.run()):
            await poster.drain(60)
    assert stored == {"Reason0": 1, "Reason1": 2}
    assert dropped.count == 0


async def test_an_event_that_is_refused_is_dropped_and_holds_up_no_other() -> None:
    stored: list[str] = []

    async def apiserver(request: web.Request) -> web.Response:
        event = await request.json()
        if event["reason"] == "Reason0":
            return refused(503)  # again and again, as for a namespace whose Events are limited
        if event["reason"] == "Reason1":
            return refused(403, "Forbidden")
        stored.append(event["reason"])
        return web.json_response(event, status=201)

    dropped = Dropped()
    async with answering(apiserver) as client:
        poster = EventPoster(client, "me", dropped)
        poster.post(JOB, map(note, range(20)), NOW)
        async with running(poster.run()):
            await until(lambda: len(stored) == 18)
    assert dropped.count == 1


async def test_what_the_queue_does_not_hold_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUEUE_EVENTS", 5)
    silence = asyncio.Event()

    async def apiserver(request: web.Request) -> web.Response:
        await silence.wait()
        return refused(503)

    dropped = Dropped()
    async with answering(apiserver) as client:
        poster = EventPoster(client, "me", dropped)
        poster.post(JOB, map(note, range(8)), NOW)
        assert dropped.count == 3
        async with running(poster.run()):
            await poster.drain(0.05)  # an end that waits for nobody who does not answer
        silence.set()
