"""The bytes of a file of text, unpacked, and what its first ones give away."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import cast

from alignment_trainer.process.errors import UserError

PACKED = (".gz", ".zst")
LINE_BYTES = 1 << 26
"""Of one row: 64 MiB, far beyond any maxLength; a file without line breaks is not read into memory."""
_MARKS = {
    b"version https://git-lfs": "a pointer of git-lfs, not the file; fetch it: `git lfs pull`",
    b"PAR1": "Parquet by its content; name it .parquet",
    b"ARROW1": "Arrow by its content; name it .arrow",
    b"\x1f\x8b": "compressed; let its name end with .gz",
    b"\x28\xb5\x2f\xfd": "compressed; let its name end with .zst",
    b"\xff\xfe": "UTF-16; write UTF-8",
    b"\xfe\xff": "UTF-16; write UTF-8",
    b"<": "HTML or XML, not rows; download the file itself",
}
"""What a file of text never begins with, and what it is."""


@contextmanager
def unpacked(file: Path) -> Iterator[BufferedReader]:
    """A file of text as bytes. Raises UserError for another kind's content, and for an archive that is damaged."""
    try:
        with _opened(file) as stream:
            head = stream.peek(64)[:64].lstrip()
            for mark, what in _MARKS.items():
                if head.startswith(mark):
                    raise UserError("UnknownFile", f"{file.name}: {what}")
            yield stream
    except (EOFError, zlib.error, OSError) as error:
        if file.suffix not in PACKED or (isinstance(error, OSError) and error.errno is not None):
            raise  # of a disk: errors of an archive have no number
        raise UserError("UnknownFile", f"{file.name}: ends early or is damaged; copy it again") from error


def _opened(file: Path) -> BufferedReader:
    if file.suffix == ".gz":
        return BufferedReader(cast("BufferedReader", gzip.open(file)))
    if file.suffix == ".zst":
        import pyarrow  # type: ignore[import-untyped]

        return BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(file)), "zstd"))
    return file.open("rb")
