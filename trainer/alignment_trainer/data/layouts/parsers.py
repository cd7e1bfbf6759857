"""How the rows that an algorithm learns from are told from others, and how one is read, by format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from alignment_api.contract.inputs import Columns, Data
from alignment_trainer.data.layouts.demonstrations import parse_demonstrations
from alignment_trainer.data.layouts.feedback import parse_feedback
from alignment_trainer.data.layouts.fields import renamed
from alignment_trainer.data.layouts.formats import (
    LOOKED_AT,
    check_demonstrations,
    check_feedback,
    check_preferences,
    check_prompts,
    check_written_demonstrations,
)
from alignment_trainer.data.layouts.preferences import parse_preferences
from alignment_trainer.data.layouts.prompts import parse_prompt
from alignment_trainer.data.rows import InvalidRow, PromptRow, RawRow, Reading
from alignment_trainer.process.errors import UserError

Check = Callable[[Iterable[RawRow], str, Columns, str], None]


@dataclass(frozen=True)
class RowParser:
    """check: looks at the first rows of a source; raises UserError. parse: what a row states, raises InvalidRow.

    check_written: looks at them where the manifest says of which format they are, if it matters.
    """

    check: Check
    parse: Callable[[RawRow, Columns], Sequence[Any]]
    check_written: Check | None = None

    def look(self, rows: Iterable[RawRow], source: str, data: Data, field: str) -> None:
        """Raises UserError where the first rows are not of this format. field: of the data."""
        first = list(islice(rows, LOOKED_AT))
        check = self.check if data.format == "auto" else self.check_written or self.check
        check(first, source, data.columns, field)
        self._refuse_unread(first, source, data.columns, field)

    def _refuse_unread(self, rows: Sequence[RawRow], source: str, columns: Columns, field: str) -> None:
        """A column that the user names and that is read in none of the rows that have it."""
        for name, column in renamed(columns).items():
            having = [row for row in rows if isinstance(row.value, Mapping) and row.value.get(column) is not None]
            readings = [reading for row in having for reading in self._readings(row, columns)]
            if readings and all(column in reading.unread for reading in readings):
                raise UserError(
                    "UnreadColumn",
                    f"{field}.columns.{name}: of {source} no `{column}` is read: its rows are {readings[0].layout}; "
                    f"remove {name}, or the columns that are read in its place",
                )

    def _readings(self, row: RawRow, columns: Columns) -> list[Reading]:
        """How the row was read; none of an invalid one."""
        try:
            return [each.reading for each in self.parse(row, columns)[:1]]
        except InvalidRow:
            return []


def _one_prompt(row: RawRow, columns: Columns) -> Sequence[PromptRow]:
    return (parse_prompt(row, columns),)


PARSERS = {
    "preferences": RowParser(check_preferences, parse_preferences),
    "demonstrations": RowParser(check_demonstrations, parse_demonstrations, check_written_demonstrations),
    "feedback": RowParser(check_feedback, parse_feedback),
    "prompts": RowParser(check_prompts, _one_prompt),
}
"""By what the algorithm's options say of its rows."""
