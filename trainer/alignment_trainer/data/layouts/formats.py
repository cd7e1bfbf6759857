"""What the first rows of a source are, and whether the job's algorithm learns from such."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from alignment_api.contract.inputs import Columns
from alignment_trainer.data.layouts.answers import LISTS
from alignment_trainer.data.layouts.fields import AS_THEY_ARE, check_columns, listed, renamed
from alignment_trainer.data.rows import RawRow
from alignment_trainer.process.errors import UserError

_PREFERENCES = (
    frozenset({"chosen"}),
    frozenset({"rejected"}),
    frozenset({"preferred_output", "non_preferred_output"}),
    *(frozenset({name}) for name in LISTS),
)
"""Any of them tells; what such a row lacks it says itself."""
_DEMONSTRATIONS = (
    frozenset({"messages"}),
    frozenset({"completion"}),
    frozenset({"conversations"}),
    frozenset({"instruction", "output"}),
    frozenset({"text"}),
)
_NO_DEMONSTRATIONS = {
    frozenset({"chosen", "rejected"}): ("preferences", "take an algorithm that learns from pairs: `dpo: {}`"),
    frozenset({"completion", "label"}): (
        "binary feedback (`completion` and `label`)",
        "take `kto`, or keep the desirable rows alone, without the column `label`",
    ),
}
_PROMPTS = frozenset({"prompt", "chosen", "conversations", "instruction"})
_WORSE = "take `sft`, or write a worse completion into each row as `rejected`, and the good one as `chosen`"
_OTHERS = {
    frozenset({"completion", "label"}): (
        "binary feedback (`completion` and `label`)",
        "take `kto`, or put a good and a bad completion of one prompt into a row, as `chosen` and `rejected`",
    ),
    frozenset({"completion"}): ("demonstrations (`completion` without `rejected`)", _WORSE),
    frozenset({"messages"}): ("demonstrations (`messages`)", _WORSE),
    frozenset({"conversations"}): ("demonstrations (ShareGPT's `conversations`)", _WORSE),
    frozenset({"instruction", "output"}): ("demonstrations (Alpaca's `instruction` and `output`)", _WORSE),
    frozenset({"prompt"}): ("prompts alone", "write two completions into each row, as `chosen` and `rejected`"),
    frozenset({"text"}): ("demonstrations (`text`)", _WORSE),
}
LOOKED_AT = 100
"""Rows of a source, the first, that show what they are."""


def check_preferences(
    rows: Iterable[RawRow], source: str, columns: Columns = AS_THEY_ARE, field: str = "spec.data"
) -> None:
    """Looks at the first rows. Raises UserError where they are something else that is known, or lack a column that
    `columns` names.

    field: where the manifest says which data: `spec.data`.
    """
    keys = _keys(rows, source, columns, field)
    if not any(marks <= found for found in keys for marks in _PREFERENCES):
        _refuse_others(keys, _OTHERS, source, "preferences: `prompt`, `chosen` and `rejected`")


def check_demonstrations(
    rows: Iterable[RawRow], source: str, columns: Columns = AS_THEY_ARE, field: str = "spec.data"
) -> None:
    """The same for demonstrations."""
    keys = _keys(rows, source, columns, field)
    anyway = f", or write {field}.format: demonstrations to learn all of them" if _demonstrate(keys) else ""
    _refuse_others(keys, _NO_DEMONSTRATIONS, source, "demonstrations", anyway)
    _refuse_no_demonstrations(keys, source, field)


def check_written_demonstrations(rows: Iterable[RawRow], source: str, columns: Columns, field: str) -> None:
    """The same where the manifest says that they are demonstrations: they may be something else, too."""
    _refuse_no_demonstrations(_keys(rows, source, columns, field), source, field)


def _demonstrate(keys: Sequence[frozenset[str]]) -> bool:
    return any(marks <= found for found in keys for marks in _DEMONSTRATIONS)


def _refuse_no_demonstrations(keys: Sequence[frozenset[str]], source: str, field: str) -> None:
    if keys and not _demonstrate(keys):
        raise UserError(
            "UnsupportedFormat",
            f"{source}: these rows are no demonstrations, found {listed(sorted(keys[0]))}; write `messages` (a list of "
            f"them), `prompt` and `completion`, or `text`; or {field}.columns.messages where it is called otherwise",
        )


def check_feedback(
    rows: Iterable[RawRow], source: str, columns: Columns = AS_THEY_ARE, field: str = "spec.data"
) -> None:
    """The same for feedback."""
    keys = _keys(rows, source, columns, field)
    if keys and not any({"completion", "label"} <= found for found in keys):
        raise UserError(
            "UnsupportedFormat",
            f"{source}: these rows are no feedback, found {listed(sorted(keys[0]))}; write `prompt`, `completion` and "
            f"`label` (true where the completion is desirable), or {field}.columns.label where it is called otherwise; "
            "pairs of `chosen` and `rejected` are for `dpo`",
        )


def check_prompts(
    rows: Iterable[RawRow], source: str, columns: Columns = AS_THEY_ARE, field: str = "spec.data"
) -> None:
    """The same for prompts; preferences have prompts, too."""
    keys = _keys(rows, source, columns, field)
    if keys and not any(found & _PROMPTS for found in keys):
        raise UserError(
            "UnsupportedFormat",
            f"{source}: these rows have no `prompt`, found {listed(sorted(keys[0]))}; this algorithm samples "
            "completions of prompts: write `prompt` (a string or a list of messages), or "
            f"{field}.columns.prompt where it is called otherwise, and whatever reward functions read",
        )


def _refuse_others(
    keys: Sequence[frozenset[str]],
    others: Mapping[frozenset[str], tuple[str, str]],
    source: str,
    needed: str,
    anyway: str = "",
) -> None:
    """Raises UserError where all of the rows are something else that is known.

    others: by columns, name and remedy. anyway: what else may be done.
    """
    for marks, (name, remedy) in others.items():
        if keys and all(marks <= found for found in keys):
            raise UserError(
                "UnsupportedFormat", f"{source}: these rows are {name}; this algorithm needs {needed}; {remedy}{anyway}"
            )


def _keys(rows: Iterable[RawRow], source: str, columns: Columns, field: str) -> Sequence[frozenset[str]]:
    """The columns of each of the first rows, and our names of those that are called otherwise."""
    looked_at = [row.value for row in islice(rows, LOOKED_AT) if isinstance(row.value, Mapping)]
    found = list(map(frozenset[str], looked_at))
    check_columns(columns, [*found, *_inside(looked_at)], source, field)
    ours = renamed(columns)
    return [keys | {name for name, column in ours.items() if column in keys} for keys in found]


def _inside(rows: Iterable[Mapping[str, Any]]) -> Iterator[frozenset[str]]:
    """What each of several answers has."""
    lists = (value for row in rows for value in row.values() if isinstance(value, list))
    return (frozenset(each) for entries in lists for each in entries if isinstance(each, Mapping))
