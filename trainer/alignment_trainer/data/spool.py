"""Tokenized rows between their source and the splits: on disk, with a few bytes of each in memory (ADR 33)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from alignment_trainer.data.examples import NUMBER_PARTS, Example, PromptExample
from alignment_trainer.data.rows import SHOWN_PROBLEMS, Problem
from alignment_trainer.data.splits import PROMPT_KEY, PromptKeys, prompt_key

Int32 = NDArray[np.int32]
Places = NDArray[np.int64]
TOKEN = np.dtype("<i4")
_PREFIX = ".rows-"
_BLOCK = 1 << 20
"""Bytes that are copied at once."""


class Pieces:
    """Byte strings, one after the other in a file that it makes; in memory their lengths alone."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("x+b")
        self._lengths = [np.empty(0, np.int32)]

    def __len__(self) -> int:
        return sum(map(len, self._lengths))

    def add(self, lengths: Sequence[int], body: bytes) -> None:
        """More of them. body: all of them, one after the other."""
        self._lengths.append(np.array(lengths, np.int32))
        self._file.write(body)

    def lengths(self) -> Int32:
        """Bytes of each."""
        self._lengths = [np.concatenate(self._lengths)]
        return self._lengths[0]

    def read(self, places: Places) -> Iterator[bytes]:
        """Those at ascending places, joined, a block at a time."""
        ends = np.cumsum(self.lengths(), dtype=np.int64)
        starts = ends - self.lengths()
        first, last = places[np.diff(places, prepend=-2) != 1], places[np.diff(places, append=-2) != 1]
        for start, end in zip(starts[first].tolist(), ends[last].tolist(), strict=True):
            for place in range(start, end, _BLOCK):
                self._file.seek(place)
                yield self._file.read(min(_BLOCK, end - place))

    def close(self) -> None:
        self._file.close()


class Problems:
    """Invalid rows: on disk, and in memory the first of them."""

    def __init__(self, pieces: Pieces) -> None:
        self.pieces, self.first = pieces, list[Problem]()

    def __len__(self) -> int:
        return len(self.pieces)

    def add(self, problems: Sequence[Problem]) -> None:
        lines = [f"{json.dumps({'row': p.row, 'problem': f'{p.place}: {p.problem}'})}\n".encode() for p in problems]
        self.pieces.add(list(map(len, lines)), b"".join(lines))
        self.first = [*self.first, *problems][:SHOWN_PROBLEMS]

    def lines(self) -> Iterator[bytes]:
        """As JSON, in blocks."""
        return self.pieces.read(np.arange(len(self)))


class Spool:
    """Rows in the order in which they come. parts: the token sequences of each. seed: of the prompts' keys."""

    def __init__(self, folder: Path, parts: Sequence[str], seed: int) -> None:
        self.tokens = {part: Pieces(folder / part) for part in parts}
        self.fields = Pieces(folder / "fields")
        self.problems = Problems(Pieces(folder / "invalid"))
        self.too_long = Problems(Pieces(folder / "too-long"))
        self._seed, self._numbers, self._keys = seed, [np.empty(0, np.int32)], [np.empty(0, PROMPT_KEY)]

    def __len__(self) -> int:
        return sum(map(len, self._numbers))

    def add(self, examples: Sequence[Example | PromptExample], fields: Sequence[str] = ()) -> None:
        """More rows. fields: of each the row as the user wrote it, as JSON, where such are kept."""
        self._numbers.append(np.array([example.row for example in examples], np.int32))
        self._keys.append(np.array([prompt_key(example.asked, self._seed) for example in examples], PROMPT_KEY))
        parts = [example.parts() for example in examples]
        for part, pieces in self.tokens.items():
            sequences = [of_example[part] for of_example in parts]
            body = np.fromiter(chain.from_iterable(sequences), TOKEN).tobytes()
            pieces.add([len(tokens) * TOKEN.itemsize for tokens in sequences], body)
        lines = [f"{line}\n".encode() for line in fields]
        self.fields.add(list(map(len, lines)), b"".join(lines))

    def numbers(self) -> Int32:
        """(rows,) of each in the user's data."""
        return np.concatenate(self._numbers)

    def prompts(self) -> PromptKeys:
        """(rows,) keys of their prompts."""
        return np.concatenate(self._keys)

    def close(self) -> None:
        for pieces in (*self.tokens.values(), self.fields, self.problems.pieces, self.too_long.pieces):
            pieces.close()


@contextmanager
def spool_in(folder: Path, parts: Sequence[str], seed: int) -> Iterator[Spool]:
    """One below `folder`, which is gone in the end; so are those that a process left which was killed."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{_PREFIX}*"):
        shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=_PREFIX, dir=folder) as place, ExitStack() as stack:
        spool = Spool(Path(place), parts, seed)
        stack.callback(spool.close)
        yield spool


@dataclass(frozen=True)
class Column:
    """An int32 array in pieces. length: of its numbers, not bytes. read: little-endian."""

    length: int
    read: Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class Selection:
    """Some rows of a spool. places: ascending."""

    spool: Spool
    places: Places

    def __len__(self) -> int:
        return len(self.places)

    def columns(self) -> dict[str, Column]:
        """By name, in its order: <part>_tokens and <part>_lengths for each part, and row. Numbers that no row has are
        left out."""
        found = {"row": _held(self.spool.numbers()[self.places])}
        for part, pieces in self.spool.tokens.items():
            lengths = pieces.lengths()[self.places] // TOKEN.itemsize
            if part in NUMBER_PARTS and not lengths.any():
                continue
            found[f"{part}_lengths"] = _held(lengths)
            found[f"{part}_tokens"] = Column(int(lengths.sum(dtype=np.int64)), lambda it=pieces: it.read(self.places))  # type: ignore[misc]
        return dict(sorted(found.items()))

    @property
    def keeps_fields(self) -> bool:
        return len(self.spool.fields) > 0

    def fields(self) -> Iterator[bytes]:
        """The rows as the user wrote them, as JSON lines, in blocks; none where such are not kept."""
        return self.spool.fields.read(self.places) if self.keeps_fields else iter(())


def _held(array: Int32) -> Column:
    return Column(len(array), lambda: iter([array.astype(TOKEN).tobytes()]))
