"""CSV and TSV: a header, then a row of strings each."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from alignment_trainer.data.readers.streams import LINE_BYTES, unpacked
from alignment_trainer.process.errors import UserError


def read_table(file: Path, delimiter: str) -> Iterator[tuple[int, object, str | None]]:
    """The line that a row begins on, the row by the header's names, what is broken. Raises UserError."""
    csv.field_size_limit(LINE_BYTES)
    with unpacked(file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        rows = csv.reader(_lines(file.name, text), delimiter=delimiter, strict=True)
        line = 1
        try:
            header = next(rows, [])
            if len(set(header)) < len(header) or not all(header):
                raise UserError("UnknownFile", f"{file.name}:1: a column has no name, or two have one; name each once")
            line = rows.line_num + 1
            for row in rows:
                wrong = f"{len(row)} fields, and the header has {len(header)}; quote those with `{delimiter}` in them"
                if row:
                    yield line, dict(zip(header, row, strict=False)), None if len(row) == len(header) else wrong
                line = rows.line_num + 1
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError("UnknownFile", f"{file.name}:{line}: {_wrong(error)}; mend it") from error


def _wrong(error: csv.Error | UnicodeDecodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8, in the row that begins here or soon after it"
    return "a quote is not closed, or text follows it"


def _lines(name: str, text: io.TextIOWrapper) -> Iterator[str]:
    for number, line in enumerate(iter(partial(text.readline, LINE_BYTES), ""), start=1):
        if len(line) == LINE_BYTES:
            raise UserError("UnknownFile", f"{name}:{number}: a line of 64 MiB or more; write one row a line")
        yield line


read_csv, read_tsv = partial(read_table, delimiter=","), partial(read_table, delimiter="\t")
