"""Turns of a conversation: OpenAI's messages, ShareGPT's, and transcripts of `Human:` and `Assistant:`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any, TypeGuard

from alignment_trainer.data.rows import InvalidRow, Message, kind_of

ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}
"""What others call a role. A role that stands in neither column is the chat template's to know."""
_FORMS = (("role", "content"), ("from", "value"))
_TOOLS = "tools are not read yet: write the call as text in `content`, or drop the row"
_WEIGHTS = (
    "weights and masks of turns are not read: drop the key, write the row's `weight`, or, for sft, give each turn that "
    "shall be learned a row of its own, as `prompt` and `completion`"
)
_IMAGES, _SOUNDS = "images are not read; drop the row", "sounds are not read; drop the row"
_VIDEOS = "videos are not read; drop the row"
_NOT_READ = {
    "tool_calls": _TOOLS,
    "tool_call_id": _TOOLS,
    "tools": _TOOLS,
    "function_call": _TOOLS,
    "reasoning_content": "write it in `content`, between the tags that the model thinks in",
    "reasoning": "write it in `content`, between the tags that the model thinks in",
    "thinking": "write it in `content`, between the tags that the model thinks in",
    "image": _IMAGES,
    "images": _IMAGES,
    "audio": _SOUNDS,
    "audios": _SOUNDS,
    "video": _VIDEOS,
    "videos": _VIDEOS,
    "train_detail": _WEIGHTS,
    "training_detail": _WEIGHTS,
}
_LEARNED = ("weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight")
"""What others call whether a turn is learned: 1 or true where it is. `masked` is the opposite, `mask` may be either."""
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


def is_message(value: object) -> TypeGuard[Mapping[str, Any]]:
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
    _check_weights(message, ROLES.get(str(message[role]), message[role]) == "assistant", where)
    said = message.get(content)
    return message[role], "".join(_parts(said, where)) if isinstance(said, list) and said else said


def _check_weights(message: Mapping[str, Any], is_answer: bool, where: str) -> None:
    """Raises InvalidRow where a turn shall be learned otherwise than every turn of the assistant alone."""
    wanted = dict.fromkeys(_LEARNED, is_answer) | {"masked": not is_answer, "mask": None}
    for key, value in wanted.items():
        if message.get(key) is not None and message[key] != value:
            raise InvalidRow(f"`{where}` has `{key}`: {_WEIGHTS}")


def unread_keys(value: object, column: str) -> Iterator[str]:
    """Keys with something in them that nobody reads, of the messages in a column: `messages[].name`."""
    if is_message(value):
        role, content = next((form for form in _FORMS if value.get(form[0]) is not None), _FORMS[0])
        yield from keys_beside(value, (role, content), column)
        parts = value.get(content)
        for part in parts if isinstance(parts, list) else ():
            yield from keys_beside(part, ("type", "text"), f"{column}.{content}[]")
    elif isinstance(value, list):
        for each in value:
            yield from unread_keys(each, f"{column}[]")


def keys_beside(value: object, read: Iterable[str], place: str) -> Iterator[str]:
    """Keys of an object with something in them beside those that are read: `place.key`."""
    if isinstance(value, Mapping):
        yield from (f"{place}.{key}" for key, said in value.items() if key not in read and _is_something(said))


def _is_something(value: object) -> bool:
    """Of a null and of what is empty nothing is lost."""
    return value is not None and value not in ("", [], {})


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
