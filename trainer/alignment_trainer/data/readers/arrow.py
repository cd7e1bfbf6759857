"""Parquet, and Arrow as `datasets` saves it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment_trainer.process.errors import UserError, describe

_ROWS = 256
_BUFFER_BYTES = 1 << 20
"""Of a column that is read from Parquet; without it a whole row group is."""


def read_parquet(file: Path) -> Iterator[tuple[int, object, str | None]]:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    number = 0
    try:
        with ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES) as parquet:
            for batch in parquet.iter_batches(batch_size=_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield number, value, None
    except (ValueError, OSError) as error:
        raise _damaged(file, "Parquet", error) from error


def parquet_rows(file: Path) -> int:
    """Rows of the file, by its metadata. Raises UserError."""
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file) as parquet:
            return int(parquet.metadata.num_rows)
    except (ValueError, OSError) as error:
        raise _damaged(file, "Parquet", error) from error


def read_arrow(file: Path) -> Iterator[tuple[int, object, str | None]]:
    """Of the file form, or of the stream form."""
    number = 0
    try:
        for batch in _batches(file):
            batch.validate(full=True)  # what a damaged file says of its lengths would end the process
            for start in range(0, batch.num_rows, _ROWS):
                for value in batch.slice(start, _ROWS).to_pylist():
                    number += 1
                    yield number, value, None
    except (ValueError, OSError) as error:
        raise _damaged(file, "Arrow", error) from error


def arrow_rows(file: Path) -> int:
    """Rows of the file, by the heads of its batches. Raises UserError."""
    try:
        return sum(batch.num_rows for batch in _batches(file))
    except (ValueError, OSError) as error:
        raise _damaged(file, "Arrow", error) from error


def _batches(file: Path) -> Iterator[Any]:
    """Mapped, not read."""
    import pyarrow  # type: ignore[import-untyped]

    with pyarrow.memory_map(str(file)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        opened = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
        yield from map(opened.get_batch, range(opened.num_record_batches)) if is_file else iter(opened)


def _damaged(file: Path, kind: str, error: ValueError | OSError) -> Exception:
    """What to raise: pyarrow's errors of a damaged file are of either type; those of a disk have a number."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    return UserError("UnknownFile", f"{file.name}: not {kind}, or damaged: {describe(error)}; copy it again")
