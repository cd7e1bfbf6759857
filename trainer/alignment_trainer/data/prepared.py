"""Prepared data in the job's storage: tokens with a manifest that is written last (docs/architecture.md)."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from alignment_api.contract.base import Contract
from alignment_api.contract.status import DataReport, ModelReport, PrecisionReport
from alignment_trainer.data.examples import PreferenceExample, PromptExample, TokenIds
from alignment_trainer.data.files import sha256, write_atomically, write_text_atomically
from alignment_trainer.data.rows import Problem

Int32 = NDArray[np.int32]
SPLITS = ("train", "evaluation")
PREFERENCE_PARTS = ("prompt", "chosen", "rejected")
PROMPT_PARTS = ("prompt",)
ROW_KEY = np.dtype("S16")
Example = TypeVar("Example", bound=PreferenceExample | PromptExample)


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
    reward_models: dict[str, ModelReport] = {}
    """Reward models that exist, as pinned, by the reward's name."""
    parts: dict[str, str]
    """File -> SHA-256."""


class Stored(Sequence[Example]):
    """Rows as flat token arrays, made into examples when asked for."""

    def __init__(self, arrays: dict[str, Int32], parts: tuple[str, ...]) -> None:
        self._rows, self._parts = arrays["row"], parts
        self._tokens = {part: arrays[f"{part}_tokens"] for part in parts}
        self._ends = {part: np.cumsum(arrays[f"{part}_lengths"], dtype=np.int64) for part in parts}

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self)
        return self._example(place, [self._part(part, place) for part in self._parts])

    def lengths(self, part: str) -> NDArray[np.int64]:
        """Tokens of each row's part, (rows,)."""
        return np.diff(self._ends[part], prepend=0)

    def keys(self) -> NDArray[np.bytes_]:
        """(rows,) what each row is known by: 16 bytes of a hash of its tokens and of where its parts end."""
        lengths = np.stack([self.lengths(part) for part in self._parts], axis=1).astype("<i8")
        heads = _pieces(lengths.ravel(), np.arange(1, len(self) + 1) * len(self._parts))
        parts = [_pieces(self._tokens[part].astype("<i4"), self._ends[part]) for part in self._parts]
        found = (_digest_pieces(head, pieces) for head, *pieces in zip(heads, *parts, strict=True))
        return np.fromiter(found, dtype=ROW_KEY, count=len(self))

    @abstractmethod
    def _example(self, place: int, parts: list[TokenIds]) -> Example:
        """The row at a place, from its token sequences."""

    def _part(self, part: str, place: int) -> TokenIds:
        ends = self._ends[part]
        start = int(ends[place - 1]) if place else 0
        return tuple(self._tokens[part][start : int(ends[place])].tolist())


def _pieces(values: NDArray[np.integer[Any]], ends: NDArray[np.int64]) -> Iterator[memoryview]:
    """The bytes of consecutive pieces of an array, without a copy."""
    whole = np.ascontiguousarray(values).view(np.uint8).data
    yield from (whole[start:end] for start, end in pairwise([0, *(ends * values.itemsize).tolist()]))


def _digest_pieces(head: memoryview, pieces: Iterable[memoryview]) -> bytes:
    total = hashlib.blake2b(head, digest_size=ROW_KEY.itemsize)
    for piece in pieces:
        total.update(piece)
    return total.digest()


class Examples(Stored[PreferenceExample]):
    """Preferences."""

    def __init__(self, arrays: dict[str, Int32]) -> None:
        super().__init__(arrays, PREFERENCE_PARTS)

    def packed_lengths(self) -> NDArray[np.int64]:
        """(rows,) tokens of each as one row with a shared prompt (`PromptGroup.length`)."""
        return self.lengths("prompt") + self.lengths("chosen") + self.lengths("rejected") - 2

    def _example(self, place: int, parts: list[TokenIds]) -> PreferenceExample:
        return PreferenceExample(int(self._rows[place]), *parts)


class Prompts(Stored[PromptExample]):
    """Prompts. fields: of each the row as the user wrote it, as JSON."""

    def __init__(self, arrays: dict[str, Int32], fields: Sequence[str]) -> None:
        super().__init__(arrays, PROMPT_PARTS)
        self._fields = fields

    def _example(self, place: int, parts: list[TokenIds]) -> PromptExample:
        return PromptExample(int(self._rows[place]), parts[0], json.loads(self._fields[place]))


def flatten(examples: Iterable[PreferenceExample | PromptExample], parts: Sequence[str]) -> dict[str, Int32]:
    """Flat int32 arrays: <part>_tokens, <part>_lengths for each part (prompt, chosen, rejected), and row."""
    listed = list(examples)
    arrays = {"row": np.array([example.row for example in listed], dtype=np.int32)}
    for part in parts:
        sequences = [getattr(example, part) for example in listed]
        arrays[f"{part}_lengths"] = np.array([len(tokens) for tokens in sequences], dtype=np.int32)
        arrays[f"{part}_tokens"] = np.array([token for tokens in sequences for token in tokens], dtype=np.int32)
    return arrays


def fingerprint_of(
    splits: Mapping[str, dict[str, Int32]], fields: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> str:
    """SHA-256 of tokenized rows: of every array of every split, by name, and of the fields that are kept."""
    total = hashlib.sha256()
    for split in sorted(splits):
        for name, array in sorted(splits[split].items()):
            total.update(f"{split}/{name}/{len(array)}\0".encode())
            total.update(array.astype("<i4").tobytes())
        for line in fields.get(split, ()):
            total.update(f"{line}\n".encode())
    return total.hexdigest()


@dataclass(frozen=True)
class PreparedData:
    """Verified prepared data. folder: `prepared` in the job's storage."""

    folder: Path
    manifest: Manifest
    train: Examples
    evaluation: Examples

    def split(self, name: str) -> Examples:
        """The rows of `train` or `evaluation`."""
        return {"train": self.train, "evaluation": self.evaluation}[name]


@dataclass(frozen=True)
class PreparedPrompts:
    """Verified prompts of PPO and GRPO. folder: as above."""

    folder: Path
    manifest: Manifest
    train: Sequence[PromptExample]
    evaluation: Sequence[PromptExample]


def prepared_folder(storage: Path) -> Path:
    return storage / "prepared"


def write_prepared(
    storage: Path,
    manifest: Manifest,
    splits: Mapping[str, dict[str, Int32]],
    invalid: Sequence[Problem],
    fields: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """Replaces what was prepared: parts first, the manifest, with their checksums, last.

    The reference's log-probs stay: they are kept by a row's own tokens, and the rows may be the same again.
    """
    folder = prepared_folder(storage)
    (folder / "manifest.json").unlink(missing_ok=True)
    parts = [
        write_atomically(folder / f"{split}.safetensors", lambda path, arrays=splits[split]: save_file(arrays, path))  # type: ignore[misc]
        for split in SPLITS
    ]
    lines = [json.dumps({"row": p.row, "problem": f"{p.place}: {p.problem}"}) for p in invalid]
    texts = {"invalid.jsonl": lines} | {_fields_file(split): rows for split, rows in fields.items() if rows}
    for name, rows in texts.items():
        parts.append(write_text_atomically(folder / name, "".join(f"{row}\n" for row in rows)))
    manifest = manifest.model_copy(update={"parts": {part.name: sha256(part) for part in parts}})
    write_text_atomically(folder / "manifest.json", manifest.model_dump_json(indent=1))


def keep_precision(storage: Path, manifest: Manifest, precision: PrecisionReport) -> None:
    """Writes another precision into the manifest of rows that stay; they do not depend on it."""
    if manifest.precision != precision:
        manifest = manifest.model_copy(update={"precision": precision})
        write_text_atomically(prepared_folder(storage) / "manifest.json", manifest.model_dump_json(indent=1))


def _fields_file(split: str) -> str:
    return f"{split}.fields.jsonl"


def read_manifest(storage: Path) -> Manifest | None:
    """The manifest of what was prepared; None where nothing is, or where it cannot be read."""
    try:
        return Manifest.model_validate_json((prepared_folder(storage) / "manifest.json").read_text())
    except (FileNotFoundError, ValidationError):
        return None


def open_prepared(storage: Path) -> PreparedData:
    """The prepared preferences, every part checked. Raises DamagedDataError."""
    folder, manifest = _verified(storage, "preferences")
    train, evaluation = (Examples(load_file(folder / f"{split}.safetensors")) for split in SPLITS)
    return PreparedData(folder, manifest, train, evaluation)


def open_prompts(storage: Path) -> PreparedPrompts:
    """The prepared prompts, every part checked. Raises DamagedDataError."""
    folder, manifest = _verified(storage, "prompts")
    train, evaluation = (
        Prompts(load_file(folder / f"{split}.safetensors"), (folder / _fields_file(split)).read_text().split("\n"))
        for split in SPLITS
    )
    return PreparedPrompts(folder, manifest, train, evaluation)


def check_prepared(storage: Path) -> None:
    """Raises DamagedDataError where a part is missing or is not what the manifest says."""
    _verified(storage)


def _verified(storage: Path, form: str | None = None) -> tuple[Path, Manifest]:
    folder, manifest = prepared_folder(storage), read_manifest(storage)
    if manifest is None:
        raise DamagedDataError(f"{folder}: no readable manifest.json; stage `prepare` has not finished here")
    if form not in (None, manifest.data.format):
        raise DamagedDataError(f"{folder}: holds {manifest.data.format}, not {form}; remove it to prepare anew")
    for name, expected in manifest.parts.items():
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            raise DamagedDataError(f"{path}: missing, or not what the manifest says; remove {folder} to prepare anew")
    return folder, manifest


def digest(value: object) -> str:
    """SHA-256 of a value as JSON, keys in order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
