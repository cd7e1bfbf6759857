"""Prepared data in the job's storage: tokens with a manifest that is written last (docs/architecture.md)."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, ClassVar, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import safe_open

from alignment_api.contract.base import Contract
from alignment_api.contract.status import DataReport, MicroBatchReport, ModelReport, PrecisionReport
from alignment_trainer.data.examples import EXAMPLE_PARTS, TOKEN_PARTS, Example, PromptExample, TokenIds, example_of
from alignment_trainer.data.files import sha256
from alignment_trainer.data.sampler import Groups
from alignment_trainer.data.spool import TOKEN, Column, Int32, Selection
from alignment_trainer.data.storage import Storage, proven

SPLITS = ("train", "evaluation")
PROMPT_PARTS = ("prompt",)
ROW_KEY = np.dtype("S16")
_ROWS_AT_ONCE = 512
"""Whose tokens are hashed in one go."""
_ALIGNED = 8
"""Bytes; where the arrays of a file begin."""
Row = TypeVar("Row", bound=Example | PromptExample)


class DamagedDataError(ValueError):
    """Prepared data is not what its manifest says."""


class Manifest(Contract):
    """prepared/manifest.json."""

    request: str
    """SHA-256 of what was asked for: the parts of the spec and the sources that decide the rows."""
    origins: dict[str, str]
    """What the spec called `model` and `data`, with their revisions: a pin holds for as long as these do."""
    data: DataReport
    """What was found."""
    model: ModelReport
    """The model, as pinned."""
    precision: PrecisionReport
    """In what every role of the job computes."""
    micro_batch: MicroBatchReport | None = None
    """How much each computes at once; absent where another release has prepared it."""
    reward_models: dict[str, ModelReport] = {}
    """Reward models that exist, as pinned, by the reward's name."""
    parts: dict[str, str]
    """File -> SHA-256."""


class Stored(Sequence[Row]):
    """Rows in a file of flat token arrays, read when asked for; in memory are their numbers and lengths."""

    known_by: ClassVar[tuple[str, ...]]
    """The parts of which a row's key is made."""

    def __init__(self, path: Path, parts: tuple[str, ...]) -> None:
        arrays: Any = safe_open(path, framework="numpy")
        self._rows, self._parts = arrays.get_tensor("row"), parts
        held = [part for part in parts if f"{part}_lengths" in arrays.keys()]  # noqa: SIM118  # no mapping
        self._tokens = {part: arrays.get_slice(f"{part}_tokens") for part in held}
        lengths = dict.fromkeys(parts, np.zeros(len(self._rows), np.int32))
        lengths |= {part: arrays.get_tensor(f"{part}_lengths") for part in held}
        self._ends = {part: np.cumsum(lengths[part], dtype=np.int64) for part in parts}

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self)
        return self._example(place, [tuple(self._between(part, place, place + 1).tolist()) for part in self._parts])

    def lengths(self, part: str) -> NDArray[np.int64]:
        """Tokens of each row's part, (rows,)."""
        return np.diff(self._ends[part], prepend=0)

    def keys(self) -> NDArray[np.bytes_]:
        """(rows,) what each row is known by: 16 bytes of a hash of its tokens and of where its parts end."""
        lengths = np.stack([self.lengths(part) for part in self.known_by], axis=1).astype("<i8")
        pieces = (slice(start, start + _ROWS_AT_ONCE) for start in range(0, len(self), _ROWS_AT_ONCE))
        found = (digest for rows in pieces for digest in self._digests(rows, lengths[rows]))
        return np.fromiter(found, dtype=ROW_KEY, count=len(self))

    def _digests(self, rows: slice, lengths: NDArray[np.int64]) -> Iterator[bytes]:
        """lengths: (rows, parts)."""
        heads = _pieces(lengths.ravel(), np.arange(1, len(lengths) + 1) * len(self.known_by))
        parts = [
            _pieces(self._between(part, rows.start, rows.start + len(lengths)), np.cumsum(of_part))
            for part, of_part in zip(self.known_by, lengths.T, strict=True)
        ]
        return (_digest_pieces(head, pieces) for head, *pieces in zip(heads, *parts, strict=True))

    @abstractmethod
    def _example(self, place: int, parts: list[TokenIds]) -> Row:
        """The row at a place, from its token sequences."""

    def _between(self, part: str, first: int, stop: int) -> Int32:
        """The tokens of some consecutive rows."""
        ends = self._ends[part]
        start, end = int(ends[first - 1]) if first else 0, int(ends[stop - 1])
        if start == end:
            return np.empty(0, TOKEN)  # safetensors takes no slice behind the last number
        tokens: Int32 = self._tokens[part][start:end]
        return tokens.astype(TOKEN, copy=False)


def _pieces(values: NDArray[np.integer[Any]], ends: NDArray[np.int64]) -> Iterator[memoryview]:
    """The bytes of consecutive pieces of an array, without a copy."""
    whole = np.ascontiguousarray(values).view(np.uint8).data
    yield from (whole[start:end] for start, end in pairwise([0, *(ends * values.itemsize).tolist()]))


def _digest_pieces(head: memoryview, pieces: Iterable[memoryview]) -> bytes:
    total = hashlib.blake2b(head, digest_size=ROW_KEY.itemsize)
    for piece in pieces:
        total.update(piece)
    return total.digest()


class Examples(Stored[Example]):
    """What offline algorithms learn from."""

    known_by = TOKEN_PARTS

    def __init__(self, path: Path) -> None:
        super().__init__(path, EXAMPLE_PARTS)

    @cached_property
    def groups(self) -> Groups | None:
        """Of rows that were one of the user's."""
        return Groups.of(self._rows)

    @property
    def completions(self) -> int:
        """Of each row."""
        return int(self.lengths("lengths").max(initial=0))

    def packed_lengths(self) -> NDArray[np.int64]:
        """(rows,) tokens of each as one row with a shared prompt (`PromptGroup.length`)."""
        return self.lengths("prompt") + self.lengths("completions") - self.lengths("lengths")

    def _example(self, place: int, parts: list[TokenIds]) -> Example:
        return example_of(int(self._rows[place]), parts)


class Prompts(Stored[PromptExample]):
    """Prompts. fields: a file of the rows as the user wrote them, a line of JSON each."""

    known_by = PROMPT_PARTS

    def __init__(self, path: Path, fields: Path) -> None:
        super().__init__(path, PROMPT_PARTS)
        self._fields = np.memmap(fields, np.uint8, "r")
        self._line_ends = _line_ends(fields)

    def _example(self, place: int, parts: list[TokenIds]) -> PromptExample:
        start = self._line_ends[place - 1] if place else 0
        line = self._fields[start : self._line_ends[place]].tobytes()
        return PromptExample(int(self._rows[place]), parts[0], json.loads(line))


def _line_ends(path: Path) -> NDArray[np.int64]:
    """(lines,) the place behind each line of a file."""
    with path.open("rb") as lines:
        return np.cumsum(np.fromiter(map(len, lines), np.int64))


def fingerprint_of(splits: Mapping[str, Selection]) -> str:
    """SHA-256 of tokenized rows: of every array of every split, by name, and of the fields that are kept."""
    total = hashlib.sha256()
    for split, rows in sorted(splits.items()):
        for name, column in rows.columns().items():
            total.update(f"{split}/{name}/{column.length}\0".encode())
            for block in column.read():
                total.update(block)
        for block in rows.fields():
            total.update(block)
    return total.hexdigest()


@dataclass(frozen=True)
class PreparedData:
    """Verified prepared data. place: `prepared` in the job's storage."""

    place: Storage
    manifest: Manifest
    train: Examples
    evaluation: Examples

    def split(self, name: str) -> Examples:
        """The rows of `train` or `evaluation`."""
        return {"train": self.train, "evaluation": self.evaluation}[name]


@dataclass(frozen=True)
class PreparedPrompts:
    """Verified prompts of PPO and GRPO. place: as above."""

    place: Storage
    manifest: Manifest
    train: Sequence[PromptExample]
    evaluation: Sequence[PromptExample]


MANIFEST = "manifest.json"
EXAMPLES = ("preferences", "demonstrations", "feedback")
PROMPTS = ("prompts",)


def prepared_in(storage: Storage) -> Storage:
    """Where prepared data lies."""
    return storage.within("prepared")


def write_prepared(
    storage: Storage, manifest: Manifest, splits: Mapping[str, Selection], invalid: Iterable[bytes]
) -> None:
    """Replaces what was prepared: parts first, the manifest, with their checksums, last.

    The reference's log-probs stay: they are kept by a row's own tokens, and the rows may be the same again.
    invalid: the lines of what was dropped.
    """
    place = prepared_in(storage)
    place.remove(MANIFEST)
    bodies = {"invalid.jsonl": invalid}
    for split, rows in splits.items():
        bodies[f"{split}.safetensors"] = as_safetensors(rows.columns())
        if rows.keeps_fields:
            bodies[_fields_file(split)] = rows.fields()
    parts = {name: place.put(name, body)[1] for name, body in bodies.items()}
    _put_manifest(place, manifest.model_copy(update={"parts": parts}))


def _put_manifest(place: Storage, manifest: Manifest) -> None:
    place.put(MANIFEST, [manifest.model_dump_json(indent=1).encode()])


def as_safetensors(columns: Mapping[str, Column]) -> Iterator[bytes]:
    """A file in that format (huggingface/safetensors, README), which its own writer makes of whole arrays alone."""
    ends = list(accumulate(column.length * TOKEN.itemsize for column in columns.values()))
    header = {
        name: {"dtype": "I32", "shape": [column.length], "data_offsets": [end - column.length * TOKEN.itemsize, end]}
        for (name, column), end in zip(columns.items(), ends, strict=True)
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNED)
    yield len(text).to_bytes(8, "little") + text
    for column in columns.values():
        yield from column.read()


def keep_decisions(
    storage: Storage, manifest: Manifest, precision: PrecisionReport, micro_batch: MicroBatchReport
) -> None:
    """Writes others into the manifest of rows that stay, which are the same under them."""
    decided = manifest.model_copy(update={"precision": precision, "micro_batch": micro_batch})
    if manifest != decided:
        _put_manifest(prepared_in(storage), decided)


def _fields_file(split: str) -> str:
    return f"{split}.fields.jsonl"


def read_manifest(storage: Storage) -> Manifest | None:
    """The manifest of what was prepared; None where nothing is, or where it cannot be read."""
    try:
        return Manifest.model_validate_json(prepared_in(storage).get(MANIFEST))
    except (FileNotFoundError, ValidationError):
        return None


def open_prepared(storage: Storage) -> PreparedData:
    """The prepared rows of an offline algorithm, every part checked. Raises DamagedDataError."""
    folder, manifest = _verified(storage, EXAMPLES)
    train, evaluation = (Examples(folder / f"{split}.safetensors") for split in SPLITS)
    return PreparedData(prepared_in(storage), manifest, train, evaluation)


def open_prompts(storage: Storage) -> PreparedPrompts:
    """The prepared prompts, every part checked. Raises DamagedDataError."""
    folder, manifest = _verified(storage, PROMPTS)
    train, evaluation = (Prompts(folder / f"{split}.safetensors", folder / _fields_file(split)) for split in SPLITS)
    return PreparedPrompts(prepared_in(storage), manifest, train, evaluation)


def check_prepared(storage: Storage) -> None:
    """Raises DamagedDataError where a part is missing or is not what the manifest says."""
    _verified(storage)


def _verified(storage: Storage, forms: tuple[str, ...] = ()) -> tuple[Path, Manifest]:
    """The folder of this machine that has every part, and what they are."""
    place, manifest = prepared_in(storage), read_manifest(storage)
    if manifest is None:
        raise DamagedDataError(f"{place}: no readable manifest.json; stage `prepare` has not finished here")
    if forms and manifest.data.format not in forms:
        wanted = " or ".join(forms)
        raise DamagedDataError(f"{place}: holds {manifest.data.format}, not {wanted}; remove it to prepare anew")
    return proven(place, list(manifest.parts), partial(_check, place, manifest)), manifest


def _check(place: Storage, manifest: Manifest, folder: Path) -> None:
    for name, expected in manifest.parts.items():
        if not (folder / name).is_file() or sha256(folder / name) != expected:
            raise DamagedDataError(
                f"{place}/{name}: missing, or not what the manifest says; remove {place} to prepare anew"
            )


def digest(value: object) -> str:
    """SHA-256 of a value as JSON, keys in order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
