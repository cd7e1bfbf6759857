"""Numbers of a row beside its texts: what it weighs, and by how much its better answer is better."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from alignment_api.contract.algorithms import Options
from alignment_api.contract.inputs import Data
from alignment_trainer.data.layouts.fields import Fields
from alignment_trainer.data.rows import InvalidRow, RowNumbers, kind_of

_LARGEST = float(np.finfo(np.float32).max)
_OF_TWO = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))


@dataclass(frozen=True)
class Numbers:
    """Which an algorithm reads. names: `weight`, `margin`. per_score: a margin for each point of a score's difference;
    0 reads no scores for it."""

    names: Set[str] = frozenset()
    per_score: float = 0.0

    @classmethod
    def of(cls, options: Options, data: Data) -> Numbers:
        """As the algorithm's options and those of the data say."""
        return cls(options.row_numbers, data.margin_per_score if "margin" in options.row_numbers else 0.0)


NONE = Numbers()


def weight_of(fields: Fields, wanted: Numbers) -> tuple[float, str]:
    """What the row weighs, and the end of its layout. Raises InvalidRow."""
    if "weight" not in wanted.names or "weight" not in fields:
        return 1.0, ""
    return _number(fields, "weight", "how often the row counts in its step"), f"; weight = `{fields.column('weight')}`"


def numbers_of(fields: Fields, wanted: Numbers, gap: float | None = None) -> tuple[RowNumbers, str]:
    """Of one pair. gap: between the scores of its answers, where they have any. Raises InvalidRow."""
    weight, layout = weight_of(fields, wanted)
    own = "margin" in wanted.names and "margin" in fields
    if own and wanted.per_score:
        raise InvalidRow(
            f"`{fields.column('margin')}` is a margin, and marginPerScore makes another; leave one of them out"
        )
    if own:
        margin = _number(fields, "margin", "by how much the chosen score is to be above the rejected one")
        return RowNumbers(weight, margin), f"{layout}; margin = `{fields.column('margin')}`"
    if not wanted.per_score:
        return RowNumbers(weight), layout
    gap, scores = (gap, "scores") if gap is not None else _gap(fields)
    margin = _single(wanted.per_score * gap, "marginPerScore")
    return RowNumbers(weight, margin), f"{layout}; margin = {wanted.per_score:g} for each point between the {scores}"


def _gap(fields: Fields) -> tuple[float, str]:
    """Between the scores that stand beside two answers."""
    for names in _OF_TWO:
        if all(name in fields for name in names):
            chosen, rejected = (_finite(fields.read(name), name) for name in names)
            if chosen < rejected:
                raise InvalidRow(f"`{names[0]}` is {chosen:g} and `{names[1]}` {rejected:g}; the chosen one is worse")
            return chosen - rejected, f"scores `{names[0]}` and `{names[1]}`"
    raise InvalidRow(
        "marginPerScore makes a margin of scores, and the row has none; write `scores` beside `completions`, "
        "`score_chosen` and `score_rejected` beside `chosen` and `rejected`, or leave marginPerScore out"
    )


def _number(fields: Fields, name: str, meaning: str) -> float:
    column = fields.column(name)
    number = _single(_finite(fields.read(name), column), column)
    if number < 0:
        raise InvalidRow(f"`{column}` is {number:g}; write 0 or more: {meaning}")
    return number


def _finite(value: object, column: str) -> float:
    """Of a number, or of the text of one, which is all that a table of text holds."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InvalidRow(f"`{column}` is {kind_of(value)}; write a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InvalidRow(f"`{column}` is `{str(value)[:40]}`; write a number") from None
    if not math.isfinite(number):
        raise InvalidRow(f"`{column}` is {number}; write a finite number")
    return number


def _single(number: float, column: str) -> float:
    """As single precision has it, which is how it is kept."""
    if abs(number) > _LARGEST:
        raise InvalidRow(f"`{column}` is {number:g}, more than single precision holds; write a smaller number")
    return float(np.float32(number))
