"""How the rows that an algorithm learns from are told from others, and how one is read, by format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alignment_api.contract.inputs import Columns, Data
from alignment_api.contract.sources import is_pattern
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
from alignment_trainer.data.layouts.numbers import NONE, Numbers
from alignment_trainer.data.layouts.preferences import parse_preferences
from alignment_trainer.data.layouts.prompts import parse_prompt
from alignment_trainer.data.rows import InvalidRow, PromptRow, RawRow, Reading, data_files, read_rows
from alignment_trainer.process.errors import UserError

Check = Callable[[Iterable[RawRow], str, Columns, str], None]


@dataclass(frozen=True)
class RowParser:
    """check: looks at the first rows of a source; raises UserError. parse: what a row states, with the numbers that the
    algorithm reads; raises InvalidRow.

    check_written: looks at them where the manifest says of which format they are, if it matters.
    """

    check: Check
    parse: Callable[[RawRow, Columns, Numbers], Sequence[Any]]
    check_written: Check | None = None

    def check_source(self, path: Path, source: str, data: Data, field: str, wanted: Numbers = NONE) -> None:
        """Looks at the first rows of a file or folder, or of each file of a pattern: those are read alike, or refused.

        Raises UserError. source: what the user calls it. field: of the data.
        """
        if not is_pattern(str(path)):
            self.look(read_rows(path), source, data, field, wanted)
            return
        first: tuple[str, set[str]] | None = None
        for file in data_files(path):
            readings = self.look(read_rows(file), f"{source}: {file.name}", data, field, wanted)
            forms = {reading.form for reading in readings}
            if first and forms and not forms & first[1]:
                raise UserError(
                    "MixedLayouts",
                    f"{source}: the rows of `{first[0]}` are read as {min(first[1])}, those of `{file.name}` as "
                    f"{min(forms)}; write a pattern of files of one layout",
                )
            first = first or ((file.name, forms) if forms else None)

    def look(
        self, rows: Iterable[RawRow], source: str, data: Data, field: str, wanted: Numbers = NONE
    ) -> Sequence[Reading]:
        """How the first rows are read. Raises UserError where they are not of this format, and for a column that the
        user names and that is read in none of the rows that have it.
        """
        first = list(islice(rows, LOOKED_AT))
        check = self.check if data.format == "auto" else self.check_written or self.check
        check(first, source, data.columns, field)
        read = [(row, reading) for row in first for reading in self._readings(row, data.columns, wanted)]
        for name, column in renamed(data.columns).items():
            having = [reading for row, reading in read if _has(row, column)]
            if having and all(column in reading.unread for reading in having):
                raise UserError(
                    "UnreadColumn",
                    f"{field}.columns.{name}: of {source} no `{column}` is read: its rows are {having[0].layout}; "
                    f"remove {name}, or the columns that are read in its place",
                )
        return [reading for _, reading in read]

    def _readings(self, row: RawRow, columns: Columns, wanted: Numbers) -> list[Reading]:
        """How the row was read; none of an invalid one, which is told by who reads all."""
        try:
            return [each.reading for each in self.parse(row, columns, wanted)[:1]]
        except InvalidRow:
            return []


def _has(row: RawRow, column: str) -> bool:
    return isinstance(row.value, Mapping) and row.value.get(column) is not None


def _one_prompt(row: RawRow, columns: Columns, wanted: Numbers = NONE) -> Sequence[PromptRow]:
    return (parse_prompt(row, columns),)


PARSERS = {
    "preferences": RowParser(check_preferences, parse_preferences),
    "demonstrations": RowParser(check_demonstrations, parse_demonstrations, check_written_demonstrations),
    "feedback": RowParser(check_feedback, parse_feedback),
    "prompts": RowParser(check_prompts, _one_prompt),
}
"""By what the algorithm's options say of its rows."""
