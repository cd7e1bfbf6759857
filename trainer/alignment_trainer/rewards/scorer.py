"""Scores of the reward functions of a job: what is forgiven in a run, and what is not."""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Container, Mapping, Sequence
from contextlib import closing
from types import TracebackType
from typing import Self

from alignment_api.contract.rewards import Reward
from alignment_trainer.process.errors import UserError
from alignment_trainer.rewards.answer import Answer
from alignment_trainer.rewards.calls import REASON, Function, FunctionCalls, Reply, functions_of

log = logging.getLogger(__name__)

LOST_OF = 16
"""Newest calls of a function of which not more than half may have cost the worker its life."""
SKIPPED_OF = 200
"""Newest calls of a function over which `maxSkippedFraction` is taken."""
UNSCORED = math.nan
"""The score of a completion that was skipped."""
_SHOWN = 200


class _Newest:
    """How many of the newest calls ended in one way."""

    def __init__(self, calls: int) -> None:
        self._calls: deque[bool] = deque(maxlen=calls)

    def add(self, ended_so: bool) -> int:
        """Counts a call. Returns how many of the newest did."""
        self._calls.append(ended_so)
        return sum(self._calls)


class FunctionScorer:
    """The reward functions among `rewards`, in a worker that starts with the first score; close it at the end.

    A completion on which a function takes longer or more memory than it may, or ends the process, scores 0 there and is
    counted in `timeouts`; a new worker goes on with the next. Where `python.onError` is `skip`, that completion and
    those on which the function raises are UNSCORED, and counted in `skipped`. One thread at a time.
    """

    def __init__(self, rewards: Sequence[Reward], sources: Mapping[str, str], field: str = "spec.algorithm") -> None:
        """field: of the algorithm, for messages. Raises UserError where the path of a function's module is not here."""
        self._calls = FunctionCalls(tuple(functions_of(rewards, sources, field)))
        self._lost = [_Newest(LOST_OF) for _ in self._calls.functions]
        self._skipped = [_Newest(SKIPPED_OF) for _ in self._calls.functions]
        self.timeouts = 0
        self.skipped = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker; another score would start one anew."""
        self._calls.close()

    def start(self) -> None:
        """Starts the worker where there are functions and none runs.

        Raises UserError where a function cannot be made, NotStarted where the process is lost over it.
        """
        self._calls.start()

    def score(self, items: Sequence[Answer], only: Container[str] | None = None) -> dict[str, list[float]]:
        """Of each function's reward, by its component's name: what every item is worth, in their order.

        only: the components to compute; absent: all.

        Raises UserError where a function raises or returns no finite number and may not skip, where a row lacks what it
        asks, and where most calls are lost or too many skipped: nothing that is learnt from such scores is so.
        """
        return {
            function.component: self._scores(place, items)
            for place, function in enumerate(self._calls.functions)
            if only is None or function.component in only
        }

    def _scores(self, place: int, items: Sequence[Answer]) -> list[float]:
        with closing(self._calls.replies(place, items)) as replies:
            return [self._settled(place, item, reply) for item, reply in zip(items, replies, strict=True)]

    def _settled(self, place: int, item: Answer, reply: Reply) -> float:
        function = self._calls.functions[place]
        python = function.spec.python
        may_skip = python is not None and python.on_error == "skip"
        if reply.kind == "row" or (reply.kind == "raised" and not may_skip):
            raise mistake(function, item, reply)
        self._look_at_lost(place, function, reply)
        if python is not None and may_skip:
            self._look_at_skipped(place, function, reply, python.max_skipped_fraction)
        if reply.kind == "value":
            return reply.value
        what_then = "is left out" if may_skip else "scores 0"
        log.warning("%s: %s; %s for the completion %.*r", function.what, reply.problem, what_then, _SHOWN, item.text)
        return UNSCORED if may_skip else 0.0

    def _look_at_lost(self, place: int, function: Function, reply: Reply) -> None:
        self.timeouts += reply.lost
        lost = self._lost[place].add(reply.lost)
        if lost > LOST_OF // 2:
            faster = f"make it faster, or write a larger {function.field}.timeoutSeconds"
            remedy = (
                f"{faster} ({function.spec.timeout_seconds:g})" if reply.kind != "large" else larger_memory(function)
            )
            raise UserError(
                REASON,
                f"{function.what}: {lost} of its newest {LOST_OF} calls gave no answer, the last because "
                f"{reply.problem}; from such scores nothing is learnt: {remedy}",
            )

    def _look_at_skipped(self, place: int, function: Function, reply: Reply, limit: float) -> None:
        self.skipped += reply.kind != "value"
        skipped = self._skipped[place].add(reply.kind != "value")
        if skipped > limit * SKIPPED_OF:
            raise UserError(
                REASON,
                f"{function.what}: it gave no score for {skipped} of its newest {SKIPPED_OF} completions, the last "
                f"because it {_verb(reply)}; mend it for such, or write a larger {function.field}.python."
                f"maxSkippedFraction ({limit:g})",
            )


def larger_memory(function: Function) -> str:
    """What to do about a function that took too much."""
    python = function.spec.python
    if python is None:
        return "write one that takes less"
    return f"take less, or write a larger {function.field}.python.memory ({python.memory})"


def mistake(function: Function, item: Answer, reply: Reply) -> UserError:
    """What to say of a function that raised, or of a row that lacks what a function asks of it."""
    row = f"{json.dumps(dict(item.row), default=str):.{_SHOWN}}"
    if reply.kind == "row":
        return UserError("InvalidData", f"{function.what}: row {row}: {reply.problem}")
    found = f"{reply.problem} for the completion {item.text!r:.{_SHOWN}} of row {row}"
    remedy = "it must return a finite number for every completion"
    if function.spec.python is not None:
        remedy += ", or write `onError: skip` beside its entrypoint to leave such completions out"
    return UserError(REASON, f"{function.what}: {found}; {remedy}")


def _verb(reply: Reply) -> str:
    return reply.problem.removeprefix("it ")
