"""Rows of preferences and of prompts: read, looked at, and every mistake in them told by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from alignment_trainer.data.sources import DATA_SUFFIXES
from alignment_trainer.process.errors import UserError, describe

FIELDS = ("prompt", "chosen", "rejected")
_OTHER_FORMATS = {
    frozenset({"completion", "label"}): "binary feedback (`completion` and `label`)",
    frozenset({"completion"}): "demonstrations (`completion` without `rejected`)",
    frozenset({"messages"}): "demonstrations (`messages`)",
    frozenset({"prompt"}): "prompts alone",
}
_LOOKED_AT = 100
_LINE_BYTES = 1 << 26
"""Of one row: 64 MiB, far beyond any maxLength; a file without line breaks is not read into memory."""
_PARQUET_ROWS = 256
_BUFFER_BYTES = 1 << 20
"""Of a column that is read from Parquet; without it a whole row group is."""
SHOWN_PROBLEMS = 20
"""Of invalid rows, the first; the others are counted."""


class InvalidRow(ValueError):
    """What is wrong with one row, and what to write instead."""


@dataclass(frozen=True)
class Problem:
    """An invalid row. row: its number in the source, from 1. place: file:line."""

    row: int
    place: str
    problem: str


@dataclass(frozen=True)
class RawRow:
    """A row as found. place: `file:line`, counted from 1. value: None with `broken` set where it cannot be read."""

    number: int
    place: str
    value: object
    broken: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt as turns, and the contents of the two assistant turns that answer it.

    place: file:line. is_chat: False where the row was three strings, so that a tokenizer without chat template can
    take it as plain text.
    """

    number: int
    place: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    is_chat: bool


@dataclass(frozen=True)
class PromptRow:
    """A prompt as turns. fields: the whole row as the user wrote it. is_chat: as above, of the prompt."""

    number: int
    place: str
    prompt: tuple[Message, ...]
    fields: Mapping[str, Any]
    is_chat: bool


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a .jsonl or .parquet file or of a folder of them, numbered from 1 over all files.

    Raises UserError for a folder without such files and for any other file.
    """
    number = 0
    for file in data_files(path):
        for place, value, broken in _READERS[file.suffix](file):
            number += 1
            yield RawRow(number, f"{file.name}:{place}", value, broken)


def data_files(path: Path) -> list[Path]:
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in DATA_SUFFIXES and file.is_file())
    if not files or files[0].suffix not in DATA_SUFFIXES:
        raise UserError("UnknownFile", f"{path}: not a {' or '.join(DATA_SUFFIXES)} file, nor a folder with any")
    return files


def _read_jsonl(file: Path) -> Iterator[tuple[int, object, str | None]]:
    with file.open("rb") as lines:
        for number, line in enumerate(iter(partial(lines.readline, _LINE_BYTES), b""), start=1):
            if len(line) == _LINE_BYTES:
                raise UserError("UnknownFile", f"{file.name}:{number}: a line of 64 MiB or more; write one row a line")
            if not line.strip():
                continue
            try:
                yield number, json.loads(line), None
            except ValueError as error:
                yield number, None, f"{_place_in_line(error)}; write one JSON object a line"


def _place_in_line(error: ValueError) -> str:
    """Never what stands there: it may be any file that somebody has put in the place of the rows."""
    return f"not JSON at column {error.colno}" if isinstance(error, json.JSONDecodeError) else describe(error)


def _read_parquet(file: Path) -> Iterator[tuple[int, object, str | None]]:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    number = 0
    try:
        with ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES) as parquet:
            for batch in parquet.iter_batches(batch_size=_PARQUET_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield number, value, None
    except ValueError as error:  # pyarrow's own are such
        raise UserError("UnknownFile", f"{file}: not Parquet: {describe(error)}; copy it again") from error


_READERS = {".jsonl": _read_jsonl, ".parquet": _read_parquet}


def check_format(rows: Iterable[RawRow], source: str) -> str:
    """The format that the first rows show. Raises UserError where it is known and is not preferences."""
    keys = _keys(rows)
    if any({"chosen", "rejected"} <= found for found in keys):
        return "preferences"
    for marks, name in _OTHER_FORMATS.items():
        if keys and all(marks <= found and not found & {"chosen", "rejected"} for found in keys):
            raise UserError(
                "UnsupportedFormat",
                f"{source}: these rows are {name}; this algorithm needs preferences: `prompt`, `chosen` and `rejected`",
            )
    return "preferences"


def check_prompts(rows: Iterable[RawRow], source: str) -> str:
    """The same for prompts; preferences have prompts, too."""
    keys = _keys(rows)
    if keys and not any(found & {"prompt", "chosen"} for found in keys):
        shown = ", ".join(f"`{key}`" for key in sorted(keys[0])) or "nothing"
        raise UserError(
            "UnsupportedFormat",
            f"{source}: these rows have no `prompt`, found {shown}; this algorithm samples completions of prompts: "
            "write `prompt` (a string or a list of messages) and whatever reward functions read",
        )
    return "prompts"


def _keys(rows: Iterable[RawRow]) -> list[frozenset[str]]:
    return [frozenset(row.value) for row in islice(rows, _LOOKED_AT) if isinstance(row.value, Mapping)]


def parse_prompt(row: RawRow) -> PromptRow:
    """The prompt of a row; of a preference without one what its two conversations share. Raises InvalidRow."""
    value = _mapping(row, '{"prompt": ...}')
    if value.get("prompt") is None and {"chosen", "rejected"} <= value.keys():
        preference = parse_row(row)
        return PromptRow(row.number, row.place, preference.prompt, value, preference.is_chat)
    prompt = value.get("prompt")
    if isinstance(prompt, list):
        return PromptRow(row.number, row.place, _asking(_messages(prompt, "prompt")), value, is_chat=True)
    return PromptRow(row.number, row.place, (Message("user", _text(prompt, "prompt")),), value, is_chat=False)


def _asking(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[-1].role == "assistant":
        raise InvalidRow("`prompt` ends with role `assistant`; its last message must be one that the model answers")
    return messages


def _mapping(row: RawRow, example: str) -> Mapping[str, Any]:
    if row.broken is not None:
        raise InvalidRow(row.broken)
    if not isinstance(row.value, Mapping):
        raise InvalidRow(f"{_kind(row.value)}, not an object; write {example}")
    return row.value


def parse_row(row: RawRow) -> PreferenceRow:
    """The preference that a row states. Raises InvalidRow."""
    value = _mapping(row, '{"prompt": ..., "chosen": ..., "rejected": ...}')
    for field in ("chosen", "rejected"):
        if value.get(field) is None:
            found = ", ".join(f"`{key}`" for key in value) or "nothing"
            raise InvalidRow(f"`{field}` is missing; found {found}. A preference needs a prompt and two completions")
    is_chat = isinstance(value["chosen"], Sequence) and not isinstance(value["chosen"], str)
    prompt, chosen, rejected = _parse_chat(value) if is_chat else _parse_text(value)
    if chosen == rejected:
        raise InvalidRow("`chosen` and `rejected` are the same; a preference needs two different completions")
    return PreferenceRow(row.number, row.place, prompt, chosen, rejected, is_chat)


def _parse_text(value: Mapping[str, object]) -> tuple[tuple[Message, ...], str, str]:
    prompt = value.get("prompt")
    turns = _messages(prompt, "prompt") if isinstance(prompt, list) else (Message("user", _text(prompt, "prompt")),)
    return turns, _text(value["chosen"], "chosen"), _text(value["rejected"], "rejected")


def _parse_chat(value: Mapping[str, object]) -> tuple[tuple[Message, ...], str, str]:
    chosen, rejected = _messages(value["chosen"], "chosen"), _messages(value["rejected"], "rejected")
    given = value.get("prompt")
    if len(chosen) == len(rejected) == 1:
        turns = _messages(given, "prompt") if isinstance(given, list) else (Message("user", _text(given, "prompt")),)
    else:
        turns = _common_start(chosen, rejected)
        chosen, rejected = chosen[len(turns) :], rejected[len(turns) :]
    return turns, _answer(chosen, "chosen"), _answer(rejected, "rejected")


def _common_start(chosen: Sequence[Message], rejected: Sequence[Message]) -> tuple[Message, ...]:
    """The shared prompt of two whole conversations: all but the last turn, which must be the only difference."""
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise InvalidRow(
            f"`chosen` ({len(chosen)} messages) and `rejected` ({len(rejected)} messages) differ before their last "
            "message; give both the same prompt and one last assistant message each"
        )
    return tuple(chosen[:-1])


def _answer(messages: Sequence[Message], field: str) -> str:
    if len(messages) != 1 or messages[0].role != "assistant":
        raise InvalidRow(f"`{field}` ends with role `{messages[-1].role}`; its last message must be the assistant's")
    return _text(messages[0].content, field)


def _messages(value: object, field: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise InvalidRow(f"`{field}` is {_kind(value)}; write a list of messages, or three strings in every field")
    messages = []
    for place, message in enumerate(value):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(k), str) for k in ("role", "content")):
            raise InvalidRow(f'`{field}[{place}]` is no message; write {{"role": "user", "content": "..."}}')
        messages.append(Message(message["role"], message["content"]))
    return tuple(messages)


def _text(value: object, field: str) -> str:
    if value is None:
        raise InvalidRow(f"`{field}` is missing; write the text that completions answer")
    if not isinstance(value, str):
        raise InvalidRow(f"`{field}` is {_kind(value)}; write a string")
    if not value.strip():
        raise InvalidRow(f"`{field}` is empty; fill it, or drop the row")
    return value


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def complain(first: Sequence[Problem], invalid: int, rows: int, source: str, field: str = "spec.data") -> UserError:
    """One error that names the invalid rows of a source: the first ones by file and line, the others by their count."""
    lines = [f"{problem.place}: {problem.problem}" for problem in first[:SHOWN_PROBLEMS]]
    hidden = invalid - len(lines)
    rest = [f"... and {hidden} more"] if hidden else []
    head = f"{source}: {invalid} of {rows} rows are invalid; mend them, or write {field}.onInvalid: drop"
    return UserError("InvalidData", "\n".join([head, *lines, *rest]))
