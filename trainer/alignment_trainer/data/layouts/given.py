"""What a row asks: one text or turns, under the names that people give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from alignment_trainer.data.layouts.fields import Fields
from alignment_trainer.data.layouts.messages import is_transcript, keys_beside, messages, transcript, unread_keys
from alignment_trainer.data.rows import InvalidRow, Message, kind_of

_USUAL = ("question", "query", "messages", "input", "context", "text")
"""Columns in which people have prompts; which of them is one only they know."""
_NEVER_READ = {("image", "images"): "images", ("audio", "audios"): "sounds", ("video", "videos"): "videos"}
"""Columns -> what they hold."""


@dataclass(frozen=True)
class GivenPrompt:
    """What a row says is asked. is_chat: False where it is one text. layout: how it was read."""

    turns: tuple[Message, ...]
    is_chat: bool
    layout: str


def given_prompt(fields: Fields) -> GivenPrompt | None:
    """The prompt that stands in a column of its own, behind the text of a column `system`; None where none does.

    Raises InvalidRow for one that cannot be read.
    """
    refuse_what_is_not_read(fields)
    reader = next((read for name, read in _COLUMNS.items() if name in fields), None)
    return _behind_system(fields, reader(fields)) if reader else None


def asking(turns: tuple[Message, ...], field: str) -> tuple[Message, ...]:
    """The turns, if a model is to answer them. Raises InvalidRow otherwise."""
    if turns[-1].role == "assistant":
        raise InvalidRow(f"`{field}` ends with role `assistant`; its last message must be one that the model answers")
    return turns


def behind_system(system: str, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns with this system message. Raises InvalidRow where they have another."""
    first = turns[0]
    if first.role != "system":
        return (Message("system", system), *turns)
    if first.content != system:
        raise InvalidRow("the row has two different system messages; keep one")
    return turns


def text_of(value: object, field: str) -> str:
    """A text with something in it. Raises InvalidRow otherwise."""
    if value is None:
        raise InvalidRow(f"`{field}` is missing; write the text that completions answer")
    if not isinstance(value, str):
        raise InvalidRow(f"`{field}` is {kind_of(value)}; write a string")
    if not value.strip():
        raise InvalidRow(f"`{field}` is empty; fill it, or drop the row")
    return value


def missing_prompt(fields: Fields) -> InvalidRow:
    """That a row asks nothing, and which of its columns may be meant."""
    usual = [name for name in _USUAL if name in fields]
    return InvalidRow(
        f"`{fields.column('prompt')}` is missing; found {fields.listed}. Write the text that completions answer, or "
        f"say what it is called: `columns: {{prompt: {usual[0] if usual else 'NAME'}}}` beside `source`"
    )


def refuse_what_is_not_read(fields: Fields) -> None:
    """Raises InvalidRow for what changes a row's meaning and cannot be read."""
    if fields.read("tools") or fields.read("functions"):
        raise InvalidRow("`tools`: tools are not read yet; drop the row, or the column where the answers use none")
    for names, what in _NEVER_READ.items():
        if any(fields.read(name) for name in names):
            raise InvalidRow(f"the row has {what}, which are not read; drop it")


def _behind_system(fields: Fields, given: GivenPrompt) -> GivenPrompt:
    system = fields.read("system")
    if system is None or system == "":
        return given
    turns = behind_system(text_of(system, fields.column("system")), given.turns)
    return GivenPrompt(turns, True, f"{given.layout} behind `{fields.column('system')}`")


def _prompt(fields: Fields) -> GivenPrompt:
    field, value = fields.column("prompt"), fields.read("prompt")
    if isinstance(value, list):
        return GivenPrompt(messages(value, field), True, f"prompt = `{field}`, a list of messages")
    if is_transcript(value) and value.rstrip().endswith("\n\nAssistant:"):
        return GivenPrompt(transcript(value, field)[:-1], True, f"prompt = `{field}`, the turns of a transcript")
    return GivenPrompt((Message("user", text_of(value, field)),), False, f"prompt = `{field}`")


def _conversations(fields: Fields) -> GivenPrompt:
    turns = messages(fields.read("conversations"), "conversations")
    return GivenPrompt(turns, True, "prompt = `conversations` (ShareGPT)")


def _instruction(fields: Fields) -> GivenPrompt:
    if fields.read("history"):
        raise InvalidRow("`history`: earlier turns are read from messages; write `prompt` as a list of them")
    instruction, more = text_of(fields.read("instruction"), "instruction"), fields.read("input")
    if not more:
        return GivenPrompt((Message("user", instruction),), False, "prompt = `instruction` (Alpaca)")
    text = f"{instruction}\n{text_of(more, 'input')}"
    return GivenPrompt((Message("user", text),), False, "prompt = `instruction`, a line break, `input` (Alpaca)")


def _input(fields: Fields) -> GivenPrompt:
    asked = fields.read("input")
    if not isinstance(asked, Mapping):
        raise missing_prompt(fields)
    refuse_what_is_not_read(Fields(asked))
    turns = messages(asked.get("messages"), "input.messages")
    fields.leave(unread_keys(asked["messages"], "input.messages"))
    fields.leave(keys_beside(asked, ("messages",), "input"))
    return GivenPrompt(turns, True, "prompt = `input.messages` (OpenAI)")


_COLUMNS: dict[str, Callable[[Fields], GivenPrompt]] = {
    "prompt": _prompt,
    "conversations": _conversations,
    "instruction": _instruction,
    "preferred_output": _input,
}
"""By the column that shows them, in the order of their right."""
