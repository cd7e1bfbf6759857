from datetime import UTC, datetime

import pytest

from alignment_api.contract.status import AlignmentJobStatus, CheckpointStatus, Condition
from alignment_operator.kube.events import Note, transitions

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
