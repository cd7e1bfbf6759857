"""What `prepare` tries of reward functions before anything costly starts. Nothing is forgiven here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

from alignment_api.contract.rewards import Reward
from alignment_trainer.process.errors import UserError
from alignment_trainer.rewards.answer import Answer
from alignment_trainer.rewards.calls import BATCH, REASON, Function, FunctionCalls, NotStarted, Reply, functions_of
from alignment_trainer.rewards.scorer import larger_memory, mistake

_TEXT = "The answer is 42."
"""Tried beside the empty completion: a function that looks at the text only where there is one loads its model here."""
_TEXT_TOKENS = 6


def check_functions(
    rewards: Sequence[Reward], sources: Mapping[str, str], field: str, rows: Iterable[Mapping[str, Any]] = ()
) -> str | None:
    """Makes every function, and tries each on two completions of the first row; on all `rows` where it looks up
    answers there. Returns why functions that ask for no network keep that of this process; None where they have none.

    field: of the algorithm, `spec.algorithm.grpo`. Raises UserError that names the reward's field, or the row: where a
    function raises, takes too long, ends its process, or returns no number.
    """
    answers = (Answer("", 0, row) for row in rows)
    tried = [each for item in islice(answers, 1) for each in (item, Answer(_TEXT, _TEXT_TOKENS, item.row))]
    functions = tuple(functions_of(rewards, sources, field))
    with closing(FunctionCalls(functions)) as calls:
        try:
            calls.start()
        except NotStarted as error:
            raise UserError(REASON, f"{error}; importing its module must end, and leave the process alive") from error
        for place in range(len(functions)):
            _try(calls, place, tried)
        looking = [place for place, function in enumerate(functions) if function.spec.numeric_answer is not None]
        while looking and (some := list(islice(answers, BATCH))):
            for place in looking:
                _try(calls, place, some)
        return calls.network_kept


def _try(calls: FunctionCalls, place: int, items: Sequence[Answer]) -> None:
    with closing(calls.replies(place, items)) as replies:
        _look_at(calls.functions[place], items, replies)


def _look_at(function: Function, items: Sequence[Answer], replies: Iterable[Reply]) -> None:
    python, raised = function.spec.python, 0
    skips = python is not None and python.on_error == "skip"
    for item, reply in zip(items, replies, strict=True):
        if reply.lost:
            raise UserError(REASON, _lost(function, item, reply))
        raised += reply.kind == "raised"
        if reply.kind == "row" or (reply.kind == "raised" and (not skips or raised == len(items))):
            raise mistake(function, item, reply)


def _lost(function: Function, item: Answer, reply: Reply) -> str:
    found = f"{function.what}: {reply.problem} for the completion {item.text!r} in its trial"
    if reply.kind == "died":
        return f"{found}; it must return a number, and neither end its process nor crash"
    if reply.kind == "large":
        return f"{found}; {larger_memory(function)}"
    if item.text == "" and function.spec.python is not None:
        now = f"{function.field}.python.firstCallTimeoutSeconds ({reply.seconds:g})"
        return f"{found}; its first call may load what it needs: load less, or write a larger {now}"
    return f"{found}; make it faster, or write a larger {function.field}.timeoutSeconds ({reply.seconds:g})"
