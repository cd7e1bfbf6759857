"""Rows of feedback: a prompt, one answer to it, and whether that is desirable."""

from __future__ import annotations

from alignment_api.contract.inputs import Columns
from alignment_trainer.data.layouts.fields import AS_THEY_ARE, Fields, object_of
from alignment_trainer.data.layouts.given import asking, given_prompt, missing_prompt, text_of
from alignment_trainer.data.layouts.messages import messages
from alignment_trainer.data.layouts.numbers import NONE, Numbers, weight_of
from alignment_trainer.data.rows import FeedbackRow, InvalidRow, RawRow, Reading, kind_of

_WORDS = {"true": True, "false": False}
_EXAMPLE = '{"prompt": ..., "completion": ..., "label": true}'


def parse_feedback(row: RawRow, columns: Columns = AS_THEY_ARE, wanted: Numbers = NONE) -> list[FeedbackRow]:
    """What a row says of its completion, one row of it. Raises InvalidRow."""
    fields = Fields(object_of(row, _EXAMPLE), columns)
    given = given_prompt(fields)
    if given is None:
        raise missing_prompt(fields)
    prompt, field = asking(given.turns, fields.column("prompt")), fields.column("completion")
    value, desirable = fields.read("completion"), _label(fields)
    answer, is_chat = _answer(value, field), given.is_chat or not isinstance(value, str)
    layout = f"{given.layout}; `{field}` is desirable where `{fields.column('label')}` is true"
    weight, weighed = weight_of(fields, wanted)
    reading = Reading(layout + weighed, fields.unread)
    return [FeedbackRow(row.number, row.place, prompt, answer, desirable, is_chat, reading, field, weight)]


def _answer(value: object, field: str) -> str:
    if isinstance(value, str) or value is None:
        return text_of(value, field)
    turns = messages(value, field)
    if [turn.role for turn in turns] != ["assistant"]:
        raise InvalidRow(
            f"`{field}` is no single message of the assistant's; write what comes before it into the prompt"
        )
    return text_of(turns[0].content, field)


def _label(fields: Fields) -> bool:
    label, field = fields.read("label"), fields.column("label")
    if isinstance(label, str):  # as all that a table of text holds
        label = _WORDS.get(label.strip().lower(), label)
    if not isinstance(label, bool):
        raise InvalidRow(f"`{field}` is {kind_of(label)}; write true where the completion is desirable, else false")
    return label
