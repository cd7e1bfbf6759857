"""JSON: a row a line, or an array of rows."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from alignment_trainer.data.readers.streams import LINE_BYTES, unpacked
from alignment_trainer.process.errors import UserError, describe

_CHUNK_BYTES = 1 << 16
_BLANK = re.compile(r"[ \t\r\n]*")


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
    decoder, text, line, ended = codecs.getincrementaldecoder("utf-8-sig")(), "", 1, False
    wanted, awaited = _CHUNK_BYTES, "["
    while True:
        try:
            chunk = stream.read(wanted)
            ended, text = not chunk, text + decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise UserError("UnknownFile", f"{name}:{line}: not UTF-8; write UTF-8") from error
        place = 0
        while True:
            start = _skip(text, place)
            if awaited in ("[", ",") and start < len(text):
                if awaited == "," and text[start] == "]":
                    _check_end(name, text[start + 1 :], stream, line)
                    return
                if text[start] != awaited:
                    raise _broken(name, line + text.count("\n", 0, start))
                start, awaited = _skip(text, start + 1), "first" if awaited == "[" else "row"
                line, text, place = line + text.count("\n", 0, start), text[start:], 0
                continue
            if awaited == "first" and text[start : start + 1] == "]":
                _check_end(name, text[start + 1 :], stream, line)
                return
            try:
                value, end = _DECODER.raw_decode(text, start)
            except ValueError as error:
                if ended or len(text) >= LINE_BYTES or awaited in ("[", ","):
                    if not ended and len(text) < LINE_BYTES:
                        break
                    raise _broken(name, line + text.count("\n", 0, start)) from error
                break
            if end == len(text) and not ended:
                break
            yield line + text.count("\n", 0, start), value, None
            line, text, place, awaited = line + text.count("\n", 0, end), text[end:], 0, ","
        wanted = max(_CHUNK_BYTES, len(text))


def _skip(text: str, start: int) -> int:
    found = _BLANK.match(text, start)
    return found.end() if found else start


def _check_end(name: str, rest: str, stream: BufferedReader, line: int) -> None:
    if rest.strip() or stream.read(_CHUNK_BYTES).strip():
        raise UserError("UnknownFile", f"{name}:{line}: something stands behind the array; write one array a file")


def _broken(name: str, line: int) -> UserError:
    return UserError("UnknownFile", f"{name}:{line}: not JSON, in an array of rows; mend it, or write one row a line")


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
