"""Rows of preferences and of prompts: read, looked at, and every mistake in them told by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignment_trainer.data.sources import DATA_SUFFIXES
from alignment_trainer.process.errors import UserError, describe

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
class Reading:
    """How a row was read, in words, and its columns that were not."""

    layout: str
    unread: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt as turns, and the contents of the two assistant turns that answer it.

    place: file:line. is_chat: False where the row was three strings, so that a tokenizer without chat template can
    take it as plain text. names: of the fields that hold the two answers.
    """

    number: int
    place: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    is_chat: bool
    reading: Reading
    names: tuple[str, str] = ("chosen", "rejected")


@dataclass(frozen=True)
class DemonstrationRow:
    """Turns of which every one of the assistant's behind the prompt is learned.

    place, is_chat: as above. prompt: turns that are not learned; none of a text, which is `reply` alone. reply: turns,
    the last one the assistant's.
    """

    number: int
    place: str
    prompt: tuple[Message, ...]
    reply: tuple[Message, ...]
    is_chat: bool
    reading: Reading

    @property
    def is_text(self) -> bool:
        """Whether it has no turns."""
        return not self.prompt


@dataclass(frozen=True)
class FeedbackRow:
    """A prompt as turns, the content of the assistant turn that answers it, and whether that is desirable.

    place, is_chat: as above. name: of the field that holds the answer.
    """

    number: int
    place: str
    prompt: tuple[Message, ...]
    completion: str
    desirable: bool
    is_chat: bool
    reading: Reading
    name: str = "completion"


@dataclass(frozen=True)
class PromptRow:
    """A prompt as turns. fields: the whole row as the user wrote it. is_chat: as above, of the prompt."""

    number: int
    place: str
    prompt: tuple[Message, ...]
    fields: Mapping[str, Any]
    is_chat: bool
    reading: Reading


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


def kind_of(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def complain(first: Sequence[Problem], invalid: int, rows: int, source: str, field: str = "spec.data") -> UserError:
    """One error that names the invalid rows of a source: the first ones by file and line, the others by their count."""
    lines = [f"{problem.place}: {problem.problem}" for problem in first[:SHOWN_PROBLEMS]]
    hidden = invalid - len(lines)
    rest = [f"... and {hidden} more"] if hidden else []
    head = f"{source}: {invalid} of {rows} rows are invalid; mend them, or write {field}.onInvalid: drop"
    return UserError("InvalidData", "\n".join([head, *lines, *rest]))
