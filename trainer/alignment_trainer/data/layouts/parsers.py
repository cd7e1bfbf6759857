"""How the rows that an algorithm learns from are told from others, and how one is read, by format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from alignment_api.contract.inputs import Columns
from alignment_trainer.data.layouts.demonstrations import parse_demonstrations
from alignment_trainer.data.layouts.feedback import parse_feedback
from alignment_trainer.data.layouts.formats import (
    check_demonstrations,
    check_feedback,
    check_preferences,
    check_prompts,
)
from alignment_trainer.data.layouts.preferences import parse_preferences
from alignment_trainer.data.layouts.prompts import parse_prompt
from alignment_trainer.data.rows import PromptRow, RawRow


@dataclass(frozen=True)
class RowParser:
    """check: looks at the first rows of a source; raises UserError. parse: what a row states, raises InvalidRow."""

    check: Callable[[Iterable[RawRow], str, Columns, str], None]
    parse: Callable[[RawRow, Columns], Sequence[Any]]


def _one_prompt(row: RawRow, columns: Columns) -> Sequence[PromptRow]:
    return (parse_prompt(row, columns),)


PARSERS = {
    "preferences": RowParser(check_preferences, parse_preferences),
    "demonstrations": RowParser(check_demonstrations, parse_demonstrations),
    "feedback": RowParser(check_feedback, parse_feedback),
    "prompts": RowParser(check_prompts, _one_prompt),
}
"""By what the algorithm's options say of its rows."""
