"""How many rows a source has, where that is known without a long reading: by a table's metadata, or by its lines."""

from __future__ import annotations

import codecs
from pathlib import Path

from alignment_trainer.data.kinds import kind_of_file
from alignment_trainer.data.readers.arrow import arrow_rows, parquet_rows
from alignment_trainer.data.readers.streams import PACKED, unpacked
from alignment_trainer.data.rows import data_files, read_rows

READ_BYTES = 32 << 20
"""Of a file whose rows can only be counted by reading them: a few seconds."""


def count_rows(path: Path) -> int | None:
    """Rows of a file, of a folder of them or of a pattern; None where only a long reading would tell.

    Raises UserError as reading them does.
    """
    total = 0
    for file in data_files(path):
        count = _count(file)
        if count is None:
            return None
        total += count
    return total


def _count(file: Path) -> int | None:
    kind = kind_of_file(file.name)
    if kind == ".parquet":
        return parquet_rows(file)
    if kind == ".arrow":
        return arrow_rows(file)
    if kind not in (".csv", ".tsv") and file.suffix not in PACKED and (lines := _lines(file)) is not None:
        return lines
    return sum(1 for _ in read_rows(file)) if file.stat().st_size <= READ_BYTES else None


def _lines(file: Path) -> int | None:
    """Of JSON, a row each; None of an array."""
    with unpacked(file) as stream:
        if stream.peek(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
            return None
        return sum(1 for line in stream if line.strip())
