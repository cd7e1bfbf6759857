"""Rows of demonstrations: conversations, prompts with their answers, and texts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import takewhile

from alignment_api.contract.inputs import Columns
from alignment_trainer.data.layouts.fields import AS_THEY_ARE, Fields, object_of
from alignment_trainer.data.layouts.given import (
    asking,
    behind_system,
    given_prompt,
    missing_prompt,
    refuse_what_is_not_read,
    text_of,
)
from alignment_trainer.data.layouts.messages import messages
from alignment_trainer.data.layouts.numbers import NONE, Numbers, weight_of
from alignment_trainer.data.rows import DemonstrationRow, InvalidRow, Message, RawRow, Reading

_EXAMPLE = '{"messages": ...}, {"prompt": ..., "completion": ...} or {"text": ...}'
Turns = tuple[Message, ...]
Found = tuple[Turns, Turns, bool, str]
"""Prompt, reply, whether it is a conversation, and how it was read."""


def parse_demonstrations(row: RawRow, columns: Columns = AS_THEY_ARE, wanted: Numbers = NONE) -> list[DemonstrationRow]:
    """What a row demonstrates, one row of it. Raises InvalidRow."""
    fields = Fields(object_of(row, _EXAMPLE), columns)
    refuse_what_is_not_read(fields)
    name = next((name for name in _READERS if name in fields), None)
    if name is None:
        raise InvalidRow(f"no demonstration in it; found {fields.listed}. Write {_EXAMPLE}")
    prompt, reply, is_chat, layout = _READERS[name](fields, name)
    weight, weighed = weight_of(fields, wanted)
    reading = Reading(layout + weighed, fields.unread)
    return [DemonstrationRow(row.number, row.place, prompt, reply, is_chat, reading, weight)]


def _conversation(fields: Fields, name: str) -> Found:
    field = fields.column(name)
    turns, layout = messages(fields.read(name), field), f"`{field}`; every assistant turn is learned"
    if "system" in fields:
        turns = behind_system(text_of(fields.read("system"), fields.column("system")), turns)
        layout += f", behind `{fields.column('system')}`"
    prompt = tuple(takewhile(lambda turn: turn.role != "assistant", turns))
    reply = turns[len(prompt) :]
    if not reply:
        raise InvalidRow(f"`{field}` has no message of role `assistant`, and nothing else is learned")
    if not any(turn.role != "system" for turn in prompt):
        raise InvalidRow(f"`{field}` begins with role `assistant`; write what that answers, or drop the message")
    return prompt, _learned(reply, field), True, layout


def _answered(fields: Fields, name: str) -> Found:
    given = given_prompt(fields)
    if given is None:
        raise missing_prompt(fields)
    field, value = fields.column(name), fields.read(name)
    prompt = asking(given.turns, fields.column("prompt"))
    if isinstance(value, str):
        reply: Turns = (Message("assistant", value),)
        is_chat = given.is_chat
    else:
        reply, is_chat = messages(value, field), True
        if reply[0].role != "assistant":
            raise InvalidRow(f"`{field}` begins with role `{reply[0].role}`; its first message must be the assistant's")
    return prompt, _learned(reply, field), is_chat, f"{given.layout}; `{field}` is learned"


def _text(fields: Fields, name: str) -> Found:
    field = fields.column(name)
    return (), (Message("assistant", text_of(fields.read(name), field)),), False, f"`{field}`; every token is learned"


def _learned(reply: Turns, field: str) -> Turns:
    """The turns, if the assistant has the last of them and says something in each of its own."""
    if reply[-1].role != "assistant":
        raise InvalidRow(f"`{field}` ends with role `{reply[-1].role}`; its last message must be the assistant's")
    for turn in reply:
        if turn.role == "assistant":
            text_of(turn.content, field)
    return reply


_READERS: dict[str, Callable[[Fields, str], Found]] = {
    "messages": _conversation,
    "completion": _answered,
    "output": _answered,
    "conversations": _conversation,
    "text": _text,
}
"""By the column that shows them, in the order of their right."""
