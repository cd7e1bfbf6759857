"""Rows of preferences: a prompt, and pairs of answers to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignment_api.contract.inputs import Columns
from alignment_trainer.data.layouts.answers import Compared, compared
from alignment_trainer.data.layouts.fields import AS_THEY_ARE, Fields, object_of
from alignment_trainer.data.layouts.given import (
    GivenPrompt,
    asking,
    behind_system,
    given_prompt,
    missing_prompt,
    text_of,
)
from alignment_trainer.data.layouts.messages import is_message, is_transcript, messages, transcript
from alignment_trainer.data.layouts.numbers import NONE, Numbers, numbers_of
from alignment_trainer.data.rows import InvalidRow, Message, PreferenceRow, RawRow, Reading

_EXAMPLE = '{"prompt": ..., "chosen": ..., "rejected": ...}'
Turns = tuple[Message, ...]


@dataclass(frozen=True)
class _Pair:
    """One preference, and how it was read."""

    prompt: Turns
    chosen: str
    rejected: str
    is_chat: bool
    layout: str


def parse_preferences(row: RawRow, columns: Columns = AS_THEY_ARE, wanted: Numbers = NONE) -> list[PreferenceRow]:
    """The pairs that a row states, one at least. Raises InvalidRow."""
    fields = Fields(object_of(row, _EXAMPLE), columns)
    answers, given = compared(fields), given_prompt(fields)
    pairs = [_pair(fields, given, two) for two in answers]
    numbers = [numbers_of(fields, wanted, two.gap) for two in answers]
    unread = fields.unread
    return [
        PreferenceRow(
            row.number,
            row.place,
            pair.prompt,
            pair.chosen,
            pair.rejected,
            pair.is_chat,
            Reading(pair.layout + layout, unread),
            two.names,
            of_pair,
        )
        for pair, two, (of_pair, layout) in zip(pairs, answers, numbers, strict=True)
    ]


def _pair(fields: Fields, given: GivenPrompt | None, two: Compared) -> _Pair:
    pair = _turns(fields, given, two) if _is_conversation(two) else _texts(fields, given, two)
    if pair.chosen == pair.rejected:
        raise InvalidRow(
            f"`{two.names[0]}` and `{two.names[1]}` are the same; a preference needs two different completions"
        )
    return pair


def _is_conversation(two: Compared) -> bool:
    """Whether the answers are turns, each in a message or a transcript."""
    return isinstance(two.chosen, list) or is_message(two.chosen) or _are_transcripts(two)


def _are_transcripts(two: Compared) -> bool:
    return is_transcript(two.chosen) and is_transcript(two.rejected)


def _texts(fields: Fields, given: GivenPrompt | None, two: Compared) -> _Pair:
    for answer, name in zip((two.chosen, two.rejected), two.names, strict=True):
        if is_transcript(answer):
            raise InvalidRow(f"`{name}` is a transcript and the other answer is not; write both alike")
    if given is None:
        raise missing_prompt(fields)
    turns = asking(given.turns, fields.column("prompt"))
    chosen, rejected = text_of(two.chosen, two.names[0]), text_of(two.rejected, two.names[1])
    return _Pair(turns, chosen, rejected, given.is_chat, f"texts; {given.layout}{two.layout}")


def _turns(fields: Fields, given: GivenPrompt | None, two: Compared) -> _Pair:
    form = "transcripts" if _are_transcripts(two) else "messages"
    chosen, rejected = _said(two.chosen, two.names[0]), _said(two.rejected, two.names[1])
    answer = _answer(chosen, two.names[0]), _answer(rejected, two.names[1])
    shared = _shared(chosen, rejected, two.names)
    if given is None or _holds(shared, given):
        prompt, behind = _whole(fields, given, shared)
        layout = f"prompt = all but the last assistant turn{behind}"
    elif chosen[0].role == "assistant":
        more = " and all but the last assistant turn" if shared else ""
        prompt, layout = (*given.turns, *shared), given.layout + more
    else:
        raise InvalidRow(
            f"`{two.names[0]}` is a conversation that does not hold `{fields.column('prompt')}`; keep one of the two, "
            "or write the assistant's answer alone"
        )
    return _Pair(asking(prompt, fields.column("prompt")), *answer, True, f"{form}; {layout}{two.layout}")


def _said(value: object, field: str) -> Turns:
    return transcript(value, field) if is_transcript(value) else messages(value, field)


def _shared(chosen: Turns, rejected: Turns, names: tuple[str, str]) -> Turns:
    """All but the last turn, which must be the only difference."""
    if chosen[:-1] != rejected[:-1]:
        raise InvalidRow(
            f"`{names[0]}` ({len(chosen)} messages) and `{names[1]}` ({len(rejected)} messages) differ before their "
            "last message; give both the same prompt and one last assistant message each"
        )
    return chosen[:-1]


def _holds(shared: Turns, given: GivenPrompt) -> bool:
    """Whether two conversations are whole: with what the row asks, but perhaps without its system message."""
    asked = _without_system(given.turns)
    if not given.is_chat:
        return any(turn.role == "user" and turn.content.strip() == asked[0].content.strip() for turn in shared)
    return bool(asked) and _without_system(shared)[: len(asked)] == asked


def _whole(fields: Fields, given: GivenPrompt | None, shared: Turns) -> tuple[Turns, str]:
    """The prompt of whole conversations, behind the system message that stands beside them; and where that stood."""
    if not shared:
        raise missing_prompt(fields)
    if given and given.turns[0].role == "system":
        return behind_system(given.turns[0].content, shared), " behind the system message of the given prompt"
    if "system" not in fields:
        return shared, ""
    field, text = fields.column("system"), text_of(fields.read("system"), fields.column("system"))
    return behind_system(text, shared), f" behind `{field}`"


def _without_system(turns: Sequence[Message]) -> Turns:
    return tuple(turns[1:] if turns and turns[0].role == "system" else turns)


def _answer(turns: Turns, field: str) -> str:
    if turns[-1].role != "assistant":
        raise InvalidRow(f"`{field}` ends with role `{turns[-1].role}`; its last message must be the assistant's")
    return text_of(turns[-1].content, field)
