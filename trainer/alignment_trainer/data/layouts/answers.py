"""Which answers of a row are compared: two, one with each of several, or every two of a scored or ranked list."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, TypeGuard

from alignment_trainer.data.layouts.fields import Fields
from alignment_trainer.data.layouts.messages import is_message
from alignment_trainer.data.rows import InvalidRow

MOST = 32
"""Completions of one row, which are 496 pairs."""
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
    if "completions" in fields and "chosen" not in fields:
        return _ranked(fields)
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


def _ranked(fields: Fields) -> list[Compared]:
    name, listed = fields.column("completions"), fields.read("completions")
    if not isinstance(listed, list) or not listed:
        raise InvalidRow(f"`{name}` is no list of completions")
    _bound(listed, name)
    scores, of = _scores(fields, listed)
    order = sorted(range(len(listed)), key=lambda place: -scores[place])
    layout = f"; a pair of every two `{name}` with different {of}"
    pairs = [
        Compared(
            _said(listed[better]),
            _said(listed[worse]),
            (f"{name}[{better}]", f"{name}[{worse}]"),
            layout,
            scores[better] - scores[worse] if of == "scores" else None,
        )
        for better, worse in combinations(order, 2)
        if scores[better] > scores[worse]
    ]
    if not pairs:
        raise InvalidRow(f"all {len(listed)} of `{name}` have the same {of}; a preference needs a better and a worse")
    return pairs


def _scores(fields: Fields, listed: Sequence[Any]) -> tuple[list[float], str]:
    """Of each completion, higher for better, and the name of what they stand in. Rank 1 is the best."""
    for column, key, sign in (("scores", "score", 1.0), ("ranks", "rank", -1.0)):
        inside = [each.get(key) if isinstance(each, Mapping) else None for each in listed]
        found = fields.read(column) if column in fields else inside
        if any(score is not None for score in found):
            return [sign * score for score in _numbers(found, len(listed), fields.column(column))], column
    raise InvalidRow(
        f"`{fields.column('completions')}` has neither `scores` (a number each, higher is better) nor `ranks` (1 is "
        "the best)"
    )


def _numbers(found: object, wanted: int, name: str) -> list[float]:
    if not isinstance(found, list) or len(found) != wanted:
        raise InvalidRow(f"`{name}` must be a list of {wanted} numbers, one of each completion")
    if not all(isinstance(score, int | float) and not isinstance(score, bool) for score in found):
        raise InvalidRow(f"`{name}` has something that is no number")
    if not all(map(math.isfinite, found)):
        raise InvalidRow(f"`{name}` has a number that is not finite")
    return found


def _said(completion: object) -> object:
    """The answer of an entry that has more than it."""
    if not isinstance(completion, Mapping) or is_message(completion):
        return completion
    return next((completion[name] for name in _TEXTS if completion.get(name) is not None), completion)
