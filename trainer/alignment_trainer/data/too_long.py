"""A row that is too long, with the end of its prompt alone (data.onTooLong: truncatePrompt)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import takewhile
from typing import TypeVar

from alignment_trainer.data.rows import InvalidRow, Message, Row

Turns = tuple[Message, ...]
Found = TypeVar("Found")


def with_end_of_prompt(row: Row, encode: Callable[[Row], Found | InvalidRow]) -> Found | None:
    """The example of the row with as much of its prompt as fits; None where none does: its answers are never cut.

    Whole turns go first, the oldest, but no system message; then the beginning of the last turn of the user's.
    """
    prompts = _shorter(row.prompt)
    for prompt in prompts:
        found = encode(replace(row, prompt=prompt))
        if not isinstance(found, InvalidRow):
            return found
    return _most(lambda kept: encode(replace(row, prompt=_cut(prompts[-1], kept))), prompts[-1]) if prompts else None


def _shorter(prompt: Turns) -> list[Turns]:
    """With fewer and fewer turns, the last with the last one of the user's and what comes behind it.

    It is the whole prompt where that has one alone, and none where it has none.
    """
    system = tuple(takewhile(lambda turn: turn.role == "system", prompt))
    asked = [place for place, turn in enumerate(prompt) if turn.role == "user"]
    return [(*system, *prompt[place:]) for place in asked[1:] or asked]


def _asked(prompt: Turns) -> int:
    """Where the user speaks."""
    return next(place for place, turn in enumerate(prompt) if turn.role == "user")


def _cut(prompt: Turns, characters: int) -> Turns:
    """With so many of the user's characters, the last ones."""
    place = _asked(prompt)
    said = prompt[place]
    return (*prompt[:place], Message(said.role, said.content[-characters:]), *prompt[place + 1 :])


def _most(ending: Callable[[int], Found | InvalidRow], prompt: Turns) -> Found | None:
    """What is found of the most of the user's characters that anything is found of, by halving; None of 1 alone."""
    found, fits, too_many = ending(1), 1, len(prompt[_asked(prompt)].content)
    if isinstance(found, InvalidRow):
        return None
    while too_many - fits > 1:
        half = (fits + too_many) // 2
        tried = ending(half)
        if isinstance(tried, InvalidRow):
            too_many = half
        else:
            found, fits = tried, half
    return found
