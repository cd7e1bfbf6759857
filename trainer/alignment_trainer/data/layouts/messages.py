"""Turns of a conversation: OpenAI's messages, ShareGPT's, and transcripts of `Human:` and `Assistant:`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, TypeGuard

from alignment_trainer.data.rows import InvalidRow, Message, kind_of

ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}
"""What others call a role. A role that stands in neither column is the chat template's to know."""
_FORMS = (("role", "content"), ("from", "value"))
_TOOLS = "tools are not read yet: write the call as text in `content`, or drop the row"
_NOT_READ = {
    "tool_calls": _TOOLS,
    "function_call": _TOOLS,
    "reasoning_content": "write it in `content`, between the tags that the model thinks in",
    "reasoning": "write it in `content`, between the tags that the model thinks in",
    "thinking": "write it in `content`, between the tags that the model thinks in",
    "images": "images are not read; drop the row",
    "audio": "sounds are not read; drop the row",
}
_TOOL_ROLES = ("function_call", "function", "observation")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


def messages(value: object, field: str) -> tuple[Message, ...]:
    """The turns that stand in a field. Raises InvalidRow that says which is none."""
    if is_message(value):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InvalidRow(f"`{field}` is {kind_of(value)}; write a list of messages, or three strings in every field")
    return tuple(_message(message, f"{field}[{place}]") for place, message in enumerate(value))


def is_message(value: object) -> bool:
    return isinstance(value, Mapping) and any(role in value for role, _ in _FORMS)


def _message(message: object, where: str) -> Message:
    role, content = next(filter(None, (_said(message, *form, where) for form in _FORMS)), (None, None))
    if not isinstance(message, Mapping) or not isinstance(role, str) or not isinstance(content, str):
        raise InvalidRow(f'`{where}` is no message; write {{"role": "user", "content": "..."}}')
    if role in _TOOL_ROLES:
        raise InvalidRow(f"`{where}` has role `{role}`: {_TOOLS}")
    return Message(ROLES.get(role, role), content)


def _said(message: object, role: str, content: str, where: str) -> tuple[object, object] | None:
    """Who says what, by these keys."""
    if not isinstance(message, Mapping) or message.get(role) is None:
        return None
    for key, remedy in _NOT_READ.items():
        if message.get(key):
            raise InvalidRow(f"`{where}` has `{key}`: {remedy}")
    said = message.get(content)
    return message[role], "".join(_parts(said, where)) if isinstance(said, list) and said else said


def _parts(parts: Sequence[Any], where: str) -> Sequence[str]:
    """The texts of a content that is a list."""
    kinds = [part.get("type") if isinstance(part, Mapping) else kind_of(part) for part in parts]
    others = [str(kind) for kind in kinds if kind != "text"]
    if others:
        raise InvalidRow(f"`{where}` has a part of type `{others[0]}`; only text is read: drop the row")
    if not all(isinstance(part.get("text"), str) for part in parts):
        raise InvalidRow(f'`{where}` has a part without text; write {{"type": "text", "text": "..."}}')
    return [part["text"] for part in parts]


def is_transcript(value: object) -> TypeGuard[str]:
    """Whether a text is of turns: it begins with `Human:`, and an `Assistant:` speaks."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in value


def transcript(text: str, field: str) -> tuple[Message, ...]:
    """Its turns, without the space around them. Raises InvalidRow where they do not alternate."""
    _, *pieces = _TURN.split("\n\n" + text.lstrip())
    speakers, said = pieces[::2], pieces[1::2]
    if any(speaker != wanted for speaker, wanted in zip(speakers, cycle(_SPEAKERS), strict=False)):
        raise InvalidRow(f"`{field}` is a transcript of {', '.join(speakers)}; they must alternate, `Human:` first")
    return tuple(Message(_SPEAKERS[who], what.strip()) for who, what in zip(speakers, said, strict=True))
