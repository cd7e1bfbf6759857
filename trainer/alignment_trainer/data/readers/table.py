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
    """The line that a row ends on, the row by the header's names, what is broken. Raises UserError."""
    csv.field_size_limit(LINE_BYTES)
    with unpacked(file) as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        rows = csv.reader(iter(partial(text.readline, LINE_BYTES), ""), delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            if len(set(header)) < len(header) or not all(header):
                raise UserError("UnknownFile", f"{file.name}:1: a column has no name, or two have one; name each once")
            for row in filter(None, rows):
                wrong = f"{len(row)} fields, and the header has {len(header)}; quote those with `{delimiter}` in them"
                fits = len(row) == len(header)
                yield rows.line_num, dict(zip(header, row, strict=False)), None if fits else wrong
        except (csv.Error, UnicodeDecodeError) as error:
            what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "a quote is not closed, or text follows it"
            raise UserError("UnknownFile", f"{file.name}:{rows.line_num + 1}: {what}; mend it") from error


read_csv, read_tsv = partial(read_table, delimiter=","), partial(read_table, delimiter="\t")
