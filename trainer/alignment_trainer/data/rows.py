"""Rows of preferences and of prompts: read, looked at, and every mistake in them told by file and line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from alignment_api.contract.sources import is_pattern
from alignment_trainer.data.kinds import KINDS, kind_of_file, rows_among
from alignment_trainer.data.patterns import NoSource, matching_files, parted
from alignment_trainer.data.readers.arrow import read_arrow, read_parquet
from alignment_trainer.data.readers.json_text import read_json
from alignment_trainer.data.readers.table import read_csv, read_tsv
from alignment_trainer.process.errors import UserError

_BEHIND = re.compile(r",? behind [^;]*")
SHOWN_PROBLEMS = 20
"""Of invalid rows, the first; the others are counted."""


class InvalidRow(ValueError):
    """What is wrong with one row, and what to write instead."""


class RowTooLong(InvalidRow):
    """It has more tokens than the job allows (data.onTooLong)."""


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
    """How a row was read, in words, and what was not: columns, and keys within messages as `messages[].name`."""

    layout: str
    unread: frozenset[str] = frozenset()

    @property
    def form(self) -> str:
        """The layout without what a row may have or lack beside others: a system message."""
        return _BEHIND.sub("", self.layout)


@dataclass(frozen=True)
class RowNumbers:
    """weight: what the row's loss counts in its step. margin: of the better answer's reward above the other's; None
    where the row has none. Both as single precision has them."""

    weight: float = 1.0
    margin: float | None = None


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
    numbers: RowNumbers = RowNumbers()


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
    weight: float = 1.0

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
    weight: float = 1.0


@dataclass(frozen=True)
class PromptRow:
    """A prompt as turns. fields: the whole row as the user wrote it. is_chat: as above, of the prompt."""

    number: int
    place: str
    prompt: tuple[Message, ...]
    fields: Mapping[str, Any]
    is_chat: bool
    reading: Reading


Row = TypeVar("Row", PreferenceRow, DemonstrationRow, FeedbackRow, PromptRow)
"""A row of any format, told from raw ones by its prompt."""


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a file of a known kind, of a folder of them or of a pattern, numbered from 1 over all files.

    Raises UserError for a folder without such files and for any other file.
    """
    number, above = 0, above_of(path)
    for file in data_files(path):
        name = file.relative_to(above) if is_pattern(str(path)) else file.name
        for place, value, broken in _READERS[kind_of_file(file.name)](file):
            number += 1
            yield RawRow(number, f"{name}:{place}", value, broken)


def above_of(path: Path) -> Path:
    """The folder that the files of a source lie in or below."""
    if is_pattern(str(path)):
        return Path(parted(path.as_posix())[0])
    return path if path.is_dir() else path.parent


def data_files(path: Path) -> list[Path]:
    """The file, those of a folder that hold rows, or those of a pattern."""
    if is_pattern(str(path)):
        try:
            return matching_files(path)
        except NoSource as error:
            raise UserError("UnknownFile", f"{path} {error}") from None
    files = [path] if kind_of_file(path.name) else []
    if path.is_dir():
        below = {str(file): file for file in path.rglob("*") if file.is_file()}
        files = [below[name] for name in rows_among(below)]
    if not files:
        raise UserError("UnknownFile", f"{path}: not a {KINDS} file, nor a folder with any")
    return files


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, object, str | None]]]] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".arrow": read_arrow,
    ".parquet": read_parquet,
}


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
