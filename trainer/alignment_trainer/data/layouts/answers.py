"""Which answers of a row are compared: two, one with each of several, or every two of a scored or ranked list."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeGuard

from alignment_trainer.data.layouts.fields import Fields
from alignment_trainer.data.layouts.messages import is_message, keys_beside
from alignment_trainer.data.rows import InvalidRow, kind_of

MOST = 32
"""Completions of one row, which are 496 pairs."""
LISTS = ("completions", "responses")
"""Columns of several answers."""
_TEXTS = ("text", "content", "response", "answer", "completion")


@dataclass(frozen=True)
class Compared:
    """Two answers as they stand in a row. names: of the fields, chosen first. layout: how they were found; empty for
    the usual two columns. gap: between their scores, above 0; None where they have none."""

    chosen: object
    rejected: object
    names: tuple[str, str]
    layout: str = ""
    gap: float | None = None


def compared(fields: Fields) -> list[Compared]:
    """The pairs of a row. Raises InvalidRow where it has none."""
    if "preferred_output" in fields:
        return [_two(fields, "preferred_output", "non_preferred_output")]
    several = next((name for name in LISTS if name in fields), None)
    if several is not None and "chosen" not in fields:
        return _ranked(fields, several)
    return list(_each_rejected(fields))


def _two(fields: Fields, chosen: str, rejected: str) -> Compared:
    for name in (chosen, rejected):
        if name not in fields:
            lacks = "is null" if fields.has_column(name) else f"is missing; found {fields.listed}"
            raise InvalidRow(f"`{fields.column(name)}` {lacks}. A preference needs a prompt and two completions")
    return Compared(fields.read(chosen), fields.read(rejected), (fields.column(chosen), fields.column(rejected)))


def _each_rejected(fields: Fields) -> Iterator[Compared]:
    pair = _two(fields, "chosen", "rejected")
    if not _is_several(pair.rejected):
        yield pair
        return
    _bound(pair.rejected, pair.names[1])
    for place, rejected in enumerate(pair.rejected):
        names = pair.names[0], f"{pair.names[1]}[{place}]"
        yield Compared(pair.chosen, rejected, names, f"; a pair with each of `{pair.names[1]}`")


def _is_several(value: object) -> TypeGuard[list[object]]:
    """Whether they are answers, not the turns of one."""
    return isinstance(value, list) and bool(value) and not any(is_message(each) for each in value)


def _bound(answers: Sequence[object], name: str) -> None:
    if len(answers) > MOST:
        raise InvalidRow(f"`{name}` has {len(answers)} completions, more than {MOST}; keep fewer in a row")


@dataclass(frozen=True)
class _Scores:
    """Of each completion, higher for better. column: `scores` or `ranks`. key: in each completion; empty where they
    stand in a list beside them. shown: for the layout."""

    numbers: list[float]
    column: str
    key: str
    shown: str


def _ranked(fields: Fields, column: str) -> list[Compared]:
    name, listed = fields.column(column), fields.read(column)
    if not isinstance(listed, list) or not listed:
        raise InvalidRow(f"`{name}` is no list of completions")
    _bound(listed, name)
    found = _scores(fields, name, listed)
    scores, said = found.numbers, [_said(each) for each in listed]
    fields.take(f"{name}[].{found.key}")
    for each, (_, text) in zip(listed, said, strict=True):
        fields.leave(_unread(each, text, name))
    order = sorted(range(len(listed)), key=lambda place: -scores[place])
    layout = f"; a pair of every two `{name}` with different {found.shown}"
    pairs = [
        Compared(
            said[better][0],
            said[worse][0],
            (f"{name}[{better}]", f"{name}[{worse}]"),
            layout,
            scores[better] - scores[worse] if found.column == "scores" else None,
        )
        for better, worse in combinations(order, 2)
        if scores[better] > scores[worse]
    ]
    if not pairs:
        raise InvalidRow(
            f"all {len(listed)} of `{name}` have the same {found.column}; a preference needs a better and a worse"
        )
    return pairs


def _scores(fields: Fields, name: str, listed: Sequence[Any]) -> _Scores:
    """By `scores` or `ranks`, of which 1 is the best, as the user calls them.

    name: of the column of completions. Beside it stands a list, or in each completion a number.
    """
    for column, usual, sign in (("scores", "score", 1.0), ("ranks", "rank", -1.0)):
        mapped = fields.column(column)
        beside = fields.read(column) if column in fields else None
        if beside is not None:
            numbers = _numbers(beside, len(listed), mapped, [f"{mapped}[{place}]" for place in range(len(listed))])
            return _Scores([sign * number for number in numbers], column, "", column)
        for key in dict.fromkeys((mapped, usual)):
            inside = [each.get(key) if isinstance(each, Mapping) else None for each in listed]
            if any(number is not None for number in inside):
                places = [f"{name}[{place}].{key}" for place in range(len(listed))]
                numbers = _numbers(inside, len(listed), key, places)
                shown = column if key == usual else f"{column} (`{key}`)"
                return _Scores([sign * number for number in numbers], column, key, shown)
    raise InvalidRow(
        f"`{name}` has neither `scores` (a number each, higher is better) nor `ranks` (1 is the best){_meant(listed)}"
    )


def _meant(listed: Sequence[Any]) -> str:
    """Which numbers there are, of which somebody must say what they mean."""
    entries = (each for each in listed if isinstance(each, Mapping))
    numbers = dict.fromkeys(key for each in entries for key, value in each.items() if _is_number(value))
    if not numbers:
        return ""
    names = ", ".join(f"`{key}`" for key in numbers)
    return f"; its completions have {names}: say which is meant, `columns: {{scores: {next(iter(numbers))}}}`"


def _numbers(found: object, wanted: int, name: str, places: Sequence[str]) -> list[float]:
    """places: where each of them stands."""
    if not isinstance(found, list) or len(found) != wanted:
        many = f"it has {len(found)}" if isinstance(found, list) else f"it is {kind_of(found)}"
        raise InvalidRow(f"`{name}` must be a list of {wanted} numbers, one of each completion; {many}")
    for place, number in zip(places, found, strict=True):
        if not _is_number(number):
            shown = f"`{number[:40]}`" if isinstance(number, str) else kind_of(number)
            raise InvalidRow(
                f"`{name}` has something that is no number: `{place}` is {shown}; write one, or drop that completion"
            )
        if not math.isfinite(number):
            raise InvalidRow(f"`{place}` is {number}, a number that is not finite; write one that is")
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _said(completion: object) -> tuple[object, str]:
    """The answer of an entry that has more than it, and where in it that stands."""
    if isinstance(completion, Mapping) and not is_message(completion):
        for name in _TEXTS:
            if completion.get(name) is not None:
                return completion[name], name
    return completion, ""


def _unread(completion: object, text: str, column: str) -> Iterator[str]:
    """Keys of such an entry beside its answer."""
    if isinstance(completion, Mapping) and not is_message(completion):
        yield from keys_beside(completion, (text,), f"{column}[]")
