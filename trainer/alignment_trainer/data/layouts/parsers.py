"""How the rows that an algorithm learns from are told from others, and how one is read, by format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from alignment_api.contract.inputs import Columns
from alignment_api.contract.sources import is_pattern
from alignment_trainer.data.layouts.demonstrations import parse_demonstrations
from alignment_trainer.data.layouts.feedback import parse_feedback
from alignment_trainer.data.layouts.formats import (
    LOOKED_AT,
    check_demonstrations,
    check_feedback,
    check_preferences,
    check_prompts,
)
from alignment_trainer.data.layouts.numbers import NONE, Numbers
from alignment_trainer.data.layouts.preferences import parse_preferences
from alignment_trainer.data.layouts.prompts import parse_prompt
from alignment_trainer.data.rows import InvalidRow, PromptRow, RawRow, data_files, read_rows
from alignment_trainer.process.errors import UserError


@dataclass(frozen=True)
class RowParser:
    """check: looks at the first rows of a source; raises UserError. parse: what a row states, with the numbers that the
    algorithm reads; raises InvalidRow."""

    check: Callable[[Iterable[RawRow], str, Columns, str], None]
    parse: Callable[[RawRow, Columns, Numbers], Sequence[Any]]

    def check_source(self, path: Path, source: str, columns: Columns, field: str, wanted: Numbers = NONE) -> None:
        """Looks at the first rows of a file or folder, or of each file of a pattern: those are read alike, or refused.

        Raises UserError. source: what the user calls it.
        """
        if not is_pattern(str(path)):
            self.check(read_rows(path), source, columns, field)
            return
        first: tuple[str, set[str]] | None = None
        for file in data_files(path):
            self.check(read_rows(file), f"{source}: {file.name}", columns, field)
            forms = self._forms(file, columns, wanted)
            if first and forms and not forms & first[1]:
                raise UserError(
                    "MixedLayouts",
                    f"{source}: the rows of `{first[0]}` are read as {min(first[1])}, those of `{file.name}` as "
                    f"{min(forms)}; write a pattern of files of one layout",
                )
            first = first or ((file.name, forms) if forms else None)

    def _forms(self, file: Path, columns: Columns, wanted: Numbers) -> set[str]:
        """How the first rows of a file are read; what is wrong with one is told by who reads all."""
        found = set()
        for row in islice(read_rows(file), LOOKED_AT):
            try:
                found.add(self.parse(row, columns, wanted)[0].reading.form)
            except InvalidRow:
                continue
        return found


def _one_prompt(row: RawRow, columns: Columns, wanted: Numbers) -> Sequence[PromptRow]:
    return (parse_prompt(row, columns),)


PARSERS = {
    "preferences": RowParser(check_preferences, parse_preferences),
    "demonstrations": RowParser(check_demonstrations, parse_demonstrations),
    "feedback": RowParser(check_feedback, parse_feedback),
    "prompts": RowParser(check_prompts, _one_prompt),
}
"""By what the algorithm's options say of its rows."""
