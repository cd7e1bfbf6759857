"""What each step sampled, kept in storage: prompts, versions of weights, and some completions for a person to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from alignment_api.contract.base import Contract
from alignment_trainer.data.experience import Scored
from alignment_trainer.data.storage import Storage

FOLDER = "rollouts"
SHOWN = 8
"""Completions of a step that are kept as text."""
Text = Callable[[Sequence[int]], str]
"""What a completion's tokens say."""


class Sample(Contract):
    """One completion."""

    row: int
    """Its prompt, by the number of its row."""
    text: str
    """All but the token that ends it."""
    tokens: int
    """Its length."""
    finished: bool
    """Whether it ended by itself."""
    reward: float | None
    """The weighted sum; none where a function has skipped it."""
    components: dict[str, float | None]
    """Each reward's part, unweighted."""


class StepRecord(Contract):
    """rollouts/<step:08d>.json, step counted from 1. Of a step that a later attempt repeats the later one counts."""

    step: int
    """The step that learns from it."""
    attempt: int
    """The attempt that sampled it."""
    rows: tuple[int, ...]
    """Prompts that are trained on, each once."""
    dropped: dict[int, str]
    """Prompts that are not, with the reason."""
    versions: tuple[int, ...]
    """Of the weights that sampled, in ascending order."""
    samples: tuple[Sample, ...]
    """Some completions."""


def keep_rollouts(storage: Storage, attempt: int, text: Text) -> Callable[[int, Scored], None]:
    """What the loop calls with what it has sampled for a step, on rank 0."""

    def keep(step: int, scored: Scored) -> None:
        record = record_of(step, attempt, scored, text)
        storage.put(f"{FOLDER}/{step:08d}.json", [record.model_dump_json(indent=1).encode()])

    return keep


def read_rollouts(storage: Storage) -> list[StepRecord]:
    """Every step's record, in order."""
    return [StepRecord.model_validate_json(storage.get(name)) for name in storage.list(f"{FOLDER}/")]


def record_of(step: int, attempt: int, scored: Scored, text: Text) -> StepRecord:
    """The record of a step."""
    rollout = scored.rollout
    pairs = [(row, one) for row, group in zip(rollout.rows, rollout.groups, strict=True) for one in group.completions]
    samples = tuple(
        Sample(
            row=row.row,
            text=text(completion),
            tokens=len(completion),
            finished=bool(rollout.finished[place]),
            reward=_told(scored.scores[place]),
            components={name: _told(values[place]) for name, values in scored.components.items()},
        )
        for place, (row, completion) in enumerate(pairs[:SHOWN])
    )
    return StepRecord(
        step=step,
        attempt=attempt,
        rows=tuple(row.row for row in rollout.rows),
        dropped=dict(rollout.dropped),
        versions=tuple(sorted(set(rollout.versions.tolist()))),
        samples=samples,
    )


def _told(score: Tensor) -> float | None:
    return None if score.isnan() else float(score)
