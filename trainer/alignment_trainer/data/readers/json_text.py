"""JSON: a row a line, or an array of rows."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from alignment_trainer.data.readers.streams import LINE_BYTES, unpacked
from alignment_trainer.process.errors import UserError, describe

_CHUNK_BYTES = 1 << 16
_BLANKS = " \t\r\n"


def read_json(file: Path) -> Iterator[tuple[int, object, str | None]]:
    """Line, value, what is broken. An array is known by its first character. Raises UserError."""
    with unpacked(file) as stream:
        head = stream.peek(64).removeprefix(codecs.BOM_UTF8).lstrip()
        yield from (_array if head.startswith(b"[") else _lines)(file.name, stream)


def _lines(name: str, stream: BufferedReader) -> Iterator[tuple[int, object, str | None]]:
    for number, line in enumerate(iter(partial(stream.readline, LINE_BYTES), b""), start=1):
        if len(line) == LINE_BYTES:
            raise UserError("UnknownFile", f"{name}:{number}: a line of 64 MiB or more; write one row a line")
        if not line.strip():
            continue
        try:
            yield number, _DECODER.decode(line.decode("utf-8-sig" if number == 1 else "utf-8")), None
        except ValueError as error:
            yield number, None, f"{_place_in_line(error)}; write one JSON object a line"


def _array(name: str, stream: BufferedReader) -> Iterator[tuple[int, object, str | None]]:
    """Behind a row that cannot be parsed no other is found: it ends the file."""
    text = _Text(name, stream)
    text.take("[")
    if text.next_character() != "]":
        yield text.line, text.value(), None
        while text.next_character() == ",":
            text.take(",")
            text.next_character()
            yield text.line, text.value(), None
    text.take("]")
    if text.next_character():
        raise UserError("UnknownFile", f"{name}:{text.line}: something stands behind the array; write one array a file")


class _Text:
    """What was read of a file and not taken yet. line: its first character's."""

    def __init__(self, name: str, stream: BufferedReader) -> None:
        self._name, self._stream = name, stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self.line, self._ended = "", 1, False

    def next_character(self) -> str:
        """The first one that is not blank, left there; nothing at the end."""
        while True:
            self._drop(len(self._text) - len(self._text.lstrip(_BLANKS)))
            if self._text or self._ended:
                return self._text[:1]
            self._read_on()

    def take(self, character: str) -> None:
        """Raises UserError where another comes next."""
        if self.next_character() != character:
            raise self._broken()
        self._drop(1)

    def value(self) -> object:
        """Takes the one that begins here; more is read until it is whole. Raises UserError."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text)
                if end < len(self._text) or self._ended:
                    self._drop(end)
                    return value
            except ValueError as error:
                if self._ended or len(self._text) >= LINE_BYTES:
                    raise self._broken() from error
            self._read_on()

    def _drop(self, characters: int) -> None:
        self.line += self._text.count("\n", 0, characters)
        self._text = self._text[characters:]

    def _read_on(self) -> None:
        chunk = self._stream.read(max(_CHUNK_BYTES, len(self._text)))
        try:
            self._text += self._decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise UserError("UnknownFile", f"{self._name}:{self.line}: not UTF-8; write UTF-8") from error
        self._ended = not chunk

    def _broken(self) -> UserError:
        place = f"{self._name}:{self.line}"
        return UserError("UnknownFile", f"{place}: not JSON, in an array of rows; mend it, or write one row a line")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _place_in_line(error: ValueError) -> str:
    """Never what stands there: it may be any file that somebody has put in the place of the rows."""
    return f"not JSON at column {error.colno}" if isinstance(error, json.JSONDecodeError) else describe(error)
