"""Rows of prompts."""

from __future__ import annotations

from alignment_api.contract.inputs import Columns
from alignment_trainer.data.layouts.fields import AS_THEY_ARE, Fields, object_of
from alignment_trainer.data.layouts.given import asking, given_prompt, missing_prompt
from alignment_trainer.data.layouts.preferences import parse_preferences
from alignment_trainer.data.rows import PromptRow, RawRow, Reading


def parse_prompt(row: RawRow, columns: Columns = AS_THEY_ARE) -> PromptRow:
    """The prompt of a row; of a preference without one what its two conversations share. Raises InvalidRow."""
    value = object_of(row, '{"prompt": ...}')
    fields = Fields(value, columns)
    given = given_prompt(fields)
    if given is None and "chosen" in fields and "rejected" in fields:
        pair = parse_preferences(row, columns)[0]
        within = frozenset(unread for unread in pair.reading.unread if unread not in value)
        return PromptRow(row.number, row.place, pair.prompt, value, pair.is_chat, Reading(pair.reading.layout, within))
    if given is None:
        raise missing_prompt(fields)
    turns = asking(given.turns, fields.column("prompt"))
    return PromptRow(row.number, row.place, turns, value, given.is_chat, Reading(given.layout, fields.unread_within))
