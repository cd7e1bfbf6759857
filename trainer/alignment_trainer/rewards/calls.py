"""Calls of the reward functions of a job, one after the other, whatever the functions do. What follows from a call that
ended badly is the caller's to say."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from alignment_api.contract.quantity import quantity_value
from alignment_api.contract.rewards import Reward, RewardFunction
from alignment_trainer.data.sources import local_path
from alignment_trainer.process.errors import UserError
from alignment_trainer.rewards.answer import Answer
from alignment_trainer.rewards.worker_process import GRACE_SECONDS, Worker, WorkerLost

log = logging.getLogger(__name__)

BATCH = 256
"""Answers of a message: what is sent again, at most, where a function ends the worker."""
OWN_MEMORY = 2**30
"""Bytes of the worker's memory that no function of the user's asked for: Python and math-verify take 0.1 GiB; the rest
is for what they make of long completions."""
REASON = "InvalidRewardFunction"
_START_SECONDS = 120.0
"""For a process and the imports of our own packages, on a busy machine; a function's own import has its first call's
limit on top."""


@dataclass(frozen=True)
class Function:
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
    def first_seconds(self) -> float:
        """Limit of its first call in a process. What is no code of the user's has loaded all it needs by then."""
        python = self.spec.python
        return python.first_call_timeout_seconds if python is not None else self.spec.timeout_seconds

    @property
    def described(self) -> dict[str, Any]:
        """As the worker wants it."""
        return {
            "spec": self.spec.model_dump(mode="json", by_alias=True, exclude_none=True),
            "path": str(self.path) if self.path is not None else None,
        }


@dataclass(frozen=True)
class Reply:
    """What became of a call.

    kind: `value` is the score. `raised`: it raised, or returned no finite number. `row`: the row lacks what it asks.
    `late`: it took longer than `seconds`. `large`: it took more memory than its process may have. `died`: its process
    ended. problem: what to tell of any but the first.
    """

    kind: Literal["value", "raised", "row", "late", "large", "died"]
    value: float = 0.0
    problem: str = ""
    seconds: float = 0.0

    @property
    def lost(self) -> bool:
        """Whether it took the worker with it."""
        return self.kind in ("late", "large", "died")


class NotStarted(RuntimeError):
    """The worker was lost while it made a function. message: with the function's field."""


class FunctionCalls:
    """The functions in a worker that starts with the first call; close it at the end. One thread at a time.

    A function's first call in a process has a limit of its own, in which it may load what it needs. Where a completion
    has cost a worker its life, the next one is warmed up by a call that ended well before, so that the longer limit is
    not spent on completions that hang.
    """

    def __init__(self, functions: Sequence[Function]) -> None:
        self.functions = tuple(functions)
        self._worker: Worker | None = None
        self._warm: set[int] = set()
        self._proven: dict[int, Answer] = {}
        self.network_kept: str | None = None
        """Why functions have a network that they should not have, as the worker that started last found."""

    def close(self) -> None:
        """Ends the worker; another call would start one anew."""
        self._warm.clear()
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def start(self) -> None:
        """Starts the worker where there are functions and none runs.

        Raises UserError where a function cannot be made, NotStarted where the process is lost over it.
        """
        if self._worker is not None or not self.functions:
            return
        self._worker = Worker([one.described for one in self.functions], self._memory, self._network)
        self.network_kept = self._network_kept()
        for function in self.functions:
            try:
                bad = self._worker.receive(_START_SECONDS + function.first_seconds).get("error")
            except WorkerLost as error:
                self.close()
                raise NotStarted(f"{function.what}: it could not be made: {error}; see the log") from error
            if bad is not None:
                self.close()
                raise UserError(REASON, f"{function.field}.{bad['field']}: {bad['message']}")

    @property
    def _memory(self) -> int:
        """Bytes that the worker may take: all functions share it."""
        python = [function.spec.python for function in self.functions if function.spec.python is not None]
        return OWN_MEMORY + sum(int(quantity_value(options.memory)) for options in python)

    @property
    def _network(self) -> bool:
        return any(function.spec.python is not None and function.spec.python.network for function in self.functions)

    def _network_kept(self) -> str | None:
        """Why functions have a network that they should not have; the log is told, too."""
        assert self._worker is not None
        try:
            refusal = self._worker.receive(_START_SECONDS)["network"]
        except WorkerLost as error:
            self.close()
            raise NotStarted(f"the process of the reward functions did not start: {error}; see the log") from error
        if refusal is not None:
            log.info("reward functions keep the network: the kernel takes it from no process here (%s)", refusal)
        return None if refusal is None else str(refusal)

    def replies(self, place: int, items: Sequence[Answer]) -> Generator[Reply]:
        """One of the function at `place` for each item, in order. Close it where not all of them are wanted."""
        done = 0
        while done < len(items):
            for reply in self._some(place, items[done:][:BATCH]):
                done += 1
                yield reply

    def _some(self, place: int, items: Sequence[Answer]) -> Iterator[Reply]:
        """Of the first of these items: up to the one that cost the worker its life; maybe of none."""
        self.start()
        function = self.functions[place]
        if place in self._warm:
            yield from self._called(place, items, function.spec.timeout_seconds)
        elif place not in self._proven:
            yield from self._called(place, items[:1], function.first_seconds)
        else:
            (reply,) = self._called(place, [self._proven[place]], function.first_seconds)
            if reply.lost:
                yield reply

    def _called(self, place: int, items: Sequence[Answer], seconds: float) -> Iterator[Reply]:
        assert self._worker is not None
        self._worker.ask(place, seconds, [asdict(item) for item in items])
        left = len(items)
        try:
            for item in items:
                reply = _reply(self._worker.receive(seconds + GRACE_SECONDS), self._memory)
                left -= 1
                if reply.lost:
                    self.close()
                    left = 0
                    yield reply
                    return
                self._warm.add(place)
                if reply.kind == "value":
                    self._proven.setdefault(place, item)
                yield reply
        except WorkerLost as error:
            self.close()
            left = 0
            problem = f"it took longer than {seconds:g} s" if error.late else str(error)
            yield Reply("late" if error.late else "died", problem=problem, seconds=seconds)
        finally:
            if left:
                self.close()  # the rest of the batch is still on its way


def functions_of(rewards: Sequence[Reward], sources: Mapping[str, str], field: str) -> Iterator[Function]:
    """The rewards that are functions.

    field: of the algorithm, for messages. Raises UserError where the path of a function's module is not here.
    """
    for place, reward in enumerate(rewards):
        if reward.function is None:
            continue
        here, python = f"{field}.rewards[{place}].function", reward.function.python
        path = None
        if python is not None and python.path is not None:
            path = local_path(python.path, sources, f"{here}.python.path", REASON)
        yield Function(reward.component, reward.function, path, here)


def _reply(message: dict[str, Any], memory: int) -> Reply:
    if "value" in message:
        return Reply("value", value=float(message["value"]))
    if "memory" in message:
        problem = f"it took more memory than its process may have, {memory / 2**30:.3g} GiB{message['memory']}"
        return Reply("large", problem=problem)
    return Reply("row", problem=message["row"]) if "row" in message else Reply("raised", problem=message["error"])


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
