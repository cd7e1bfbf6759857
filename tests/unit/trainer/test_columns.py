"""Columns that the manifest names: every one of them is read, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from alignment_api.contract.inputs import COLUMNS_OF, Columns, Data, RowFormat
from alignment_trainer.data.layouts.numbers import Numbers
from alignment_trainer.data.layouts.parsers import PARSERS
from alignment_trainer.data.rows import InvalidRow, RawRow
from alignment_trainer.process.errors import UserError

TALK = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Ho."}]
PAIR = {"prompt": "Hi.", "system": "Be kind.", "chosen": "Yes.", "rejected": "No."}
SCORED = {"prompt": "Hi.", "completions": ["a", "b"]}
ROWS: dict[RowFormat, list[dict[str, Any]]] = {
    "preferences": [PAIR | {"weight": 2, "margin": 0.5}, SCORED | {"scores": [1, 2]}, SCORED | {"ranks": [1, 2]}],
    "demonstrations": [
        {"prompt": "Hi.", "system": "Be kind.", "completion": "Ho."},
        {"messages": TALK, "weight": 2},
        {"text": "Once upon a time"},
    ],
    "feedback": [{"prompt": "Hi.", "system": "Be kind.", "completion": "Ho.", "label": True, "weight": 2}],
    "prompts": [
        {"prompt": "Hi.", "system": "Be kind."},
        {"chosen": TALK, "rejected": [TALK[0], {"role": "assistant", "content": "No."}]},
    ],
}
"""Rows that are read by each of a format's columns."""
EVERY = Numbers(frozenset({"weight", "margin"}))


def read(form: RowFormat, value: object, columns: Columns) -> list[tuple[Any, ...]] | str:
    """What a row says, or why it says nothing, whatever its columns are called."""
    try:
        found = PARSERS[form].parse(RawRow(1, "x:1", value), columns, EVERY)
    except InvalidRow as error:
        return str(error)
    names = ("prompt", "chosen", "reply", "is_chat", "numbers", "weight")
    return [tuple(getattr(row, name, None) for name in names) for row in found]


@pytest.mark.parametrize("form", COLUMNS_OF)
@pytest.mark.parametrize("name", Columns.model_fields)
def test_a_column_is_read_by_another_name_exactly_where_the_rules_allow_it(form: RowFormat, name: str) -> None:
    with_it = [row for row in ROWS[form] if name in row]
    assert bool(with_it) == (name in COLUMNS_OF[form])
    for row in with_it:
        called = {("elsewhere" if key == name else key): value for key, value in row.items()}
        assert read(form, called, Columns(**{name: "elsewhere"})) == read(form, row, Columns())
        assert read(form, called, Columns()) != read(form, row, Columns())


def test_a_column_that_is_named_and_read_in_no_row_is_refused() -> None:
    rows = [RawRow(1, "x:1", PAIR | {"quality": [1, 2]})]
    data = Data.model_validate({"source": "pvc://data/x", "columns": {"scores": "quality"}})
    with pytest.raises(UserError, match=r"^spec\.data\.columns\.scores: of x no `quality` is read: its rows are te"):
        PARSERS["preferences"].look(rows, "x", data, "spec.data")
    scored = [*rows, RawRow(2, "x:2", SCORED | {"quality": [1, 2]})]
    PARSERS["preferences"].look(scored, "x", data, "spec.data")
