"""Scores of the reward functions of a job, whatever the functions do."""

from __future__ import annotations

import json
import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from alignment_api.rewards import Reward, RewardFunction
from alignment_trainer.data.sources import local_path
from alignment_trainer.process.errors import UserError
from alignment_trainer.rewards.answer import Answer
from alignment_trainer.rewards.sandbox import GRACE_SECONDS, START_SECONDS, Worker, WorkerLost

log = logging.getLogger(__name__)

BATCH = 256
"""Answers of a message: what is sent again, at most, where a function ends the worker."""
_REASON = "InvalidRewardFunction"
_SHOWN = 200


@dataclass(frozen=True)
class _Function:
    """A reward of the spec that is a function. field: `spec.algorithm.grpo.rewards[0].function`."""

    component: str
    spec: RewardFunction
    path: Path | None
    field: str

    @property
    def what(self) -> str:
        """The field that says what is computed: `...function.python.entrypoint`."""
        option = "python.entrypoint" if self.spec.python is not None else _camel(self.spec.name)
        return f"{self.field}.{option}"

    @property
    def described(self) -> dict[str, Any]:
        """As the worker wants it."""
        return {
            "spec": self.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
            "path": str(self.path) if self.path is not None else None,
        }


class FunctionScorer:
    """The reward functions among `rewards`, in a worker that starts with the first score; close it at the end.

    A completion on which a function takes longer than its limit, or ends the process, scores 0 there and is counted in
    `timeouts`; a new worker goes on with the next. One thread at a time.
    """

    def __init__(self, rewards: Sequence[Reward], sources: Mapping[str, str], field: str = "spec.algorithm") -> None:
        """field: of the algorithm, for messages. Raises UserError where the path of a function's module is not here."""
        self._functions = tuple(_functions(rewards, sources, field))
        self._worker: Worker | None = None
        self.timeouts = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker; another score would start one anew."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def start(self) -> None:
        """Starts the worker where there are functions and none runs.

        Raises UserError where a function cannot be made, RuntimeError where the process dies over it.
        """
        if self._worker is not None or not self._functions:
            return
        worker = Worker([function.described for function in self._functions])
        try:
            bad = worker.receive(START_SECONDS).get("error")
        except WorkerLost as error:
            fields = ", ".join(function.what for function in self._functions)
            raise RuntimeError(f"{fields}: no process could be started for these: {error}; see the log") from error
        if bad is not None:
            worker.close()
            raise UserError(_REASON, f"{self._functions[bad['function']].field}.{bad['field']}: {bad['message']}")
        self._worker = worker

    def score(self, items: Sequence[Answer], only: Container[str] | None = None) -> dict[str, list[float]]:
        """Of each function's reward, by its component's name: what every item is worth, in their order.

        only: the components to compute; absent: all.

        Raises UserError where a function raises or returns no finite number, or a row lacks what it asks of it: a score
        of 0 would teach the model something that is not so.
        """
        return {
            function.component: self._scores(place, items)
            for place, function in enumerate(self._functions)
            if only is None or function.component in only
        }

    def _scores(self, place: int, items: Sequence[Answer]) -> list[float]:
        values: list[float] = []
        while len(values) < len(items):
            values += self._batch(place, items[len(values) :][:BATCH])
        return values

    def _batch(self, place: int, items: Sequence[Answer]) -> list[float]:
        """Of the first of these items: all, or up to the one that cost the worker its life."""
        function = self._functions[place]
        values: list[float] = []
        self.start()
        assert self._worker is not None
        self._worker.ask(place, [asdict(item) for item in items])
        try:
            for item in items:
                message = self._worker.receive(function.spec.timeout_seconds + GRACE_SECONDS)
                values.append(self._value(function, item, message))
        except WorkerLost as error:
            self._worker = None
            self.timeouts += 1
            values.append(0.0)
            shown = f"{items[len(values) - 1].text!r:.{_SHOWN}}"
            log.warning("%s: %s; it scores 0 for the completion %s", function.what, error, shown)
        return values

    def _value(self, function: _Function, item: Answer, message: dict[str, Any]) -> float:
        if "value" in message:
            return float(message["value"])
        self.close()  # the rest of the batch is still on its way
        row = f"{json.dumps(dict(item.row), default=str):.{_SHOWN}}"
        if "row" in message:
            raise UserError("InvalidData", f"{function.what}: row {row}: {message['row']}")
        found = f"{message['error']} for the completion {item.text!r:.{_SHOWN}} of row {row}"
        raise UserError(_REASON, f"{function.what}: {found}; it must return a finite number for every completion")


def check_functions(
    rewards: Sequence[Reward], sources: Mapping[str, str], field: str, rows: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Makes every function, and tries each on the empty completion: on all `rows` where it looks up answers there, else
    on the first.

    field: of the algorithm, `spec.algorithm.grpo`. Raises UserError that names the reward's field, or the row.
    """
    every = [Answer("", 0, row) for row in rows]
    looking = {r.component for r in rewards if r.function is not None and r.function.numeric_answer is not None}
    with FunctionScorer(rewards, sources, field) as scorer:
        scorer.start()
        scorer.score(every[:1])
        scorer.score(every, only=looking)


def _functions(rewards: Sequence[Reward], sources: Mapping[str, str], field: str) -> Iterable[_Function]:
    for place, reward in enumerate(rewards):
        if reward.function is None:
            continue
        here, python = f"{field}.rewards[{place}].function", reward.function.python
        path = None
        if python is not None and python.path is not None:
            path = local_path(python.path, sources, f"{here}.python.path", _REASON)
        yield _Function(reward.component, reward.function, path, here)


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
