"""Prepared data in the job's storage: tokens with a manifest that is written last (docs/architecture.md)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.numpy import load_file, save_file

from alignment_api.base import Contract
from alignment_api.status import DataReport, ModelReport
from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.files import sha256, write_atomically, write_text_atomically
from alignment_trainer.data.rows import Problem

Int32 = NDArray[np.int32]
SPLITS = ("train", "evaluation")
PARTS = ("prompt", "chosen", "rejected")


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
    parts: dict[str, str]
    """File -> SHA-256."""


class Examples(Sequence[PreferenceExample]):
    """Preferences as flat token arrays, made into examples when asked for."""

    def __init__(self, arrays: dict[str, Int32]) -> None:
        self._rows = arrays["row"]
        self._tokens = {part: arrays[f"{part}_tokens"] for part in PARTS}
        self._ends = {part: np.cumsum(arrays[f"{part}_lengths"], dtype=np.int64) for part in PARTS}

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> PreferenceExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[PreferenceExample]: ...
    def __getitem__(self, index: int | slice) -> PreferenceExample | list[PreferenceExample]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self)
        prompt, chosen, rejected = (self._part(part, place) for part in PARTS)
        return PreferenceExample(int(self._rows[place]), prompt, chosen, rejected)

    def _part(self, part: str, place: int) -> tuple[int, ...]:
        ends = self._ends[part]
        start = int(ends[place - 1]) if place else 0
        return tuple(self._tokens[part][start : int(ends[place])].tolist())


def flatten(examples: Iterable[PreferenceExample]) -> dict[str, Int32]:
    """Flat int32 arrays: <part>_tokens, <part>_lengths for prompt, chosen and rejected, and row."""
    listed = list(examples)
    arrays = {"row": np.array([example.row for example in listed], dtype=np.int32)}
    for part in PARTS:
        sequences = [getattr(example, part) for example in listed]
        arrays[f"{part}_lengths"] = np.array([len(tokens) for tokens in sequences], dtype=np.int32)
        arrays[f"{part}_tokens"] = np.array([token for tokens in sequences for token in tokens], dtype=np.int32)
    return arrays


def fingerprint_of(splits: dict[str, dict[str, Int32]]) -> str:
    """SHA-256 of tokenized rows: of every array of every split, by name."""
    total = hashlib.sha256()
    for split in sorted(splits):
        for name, array in sorted(splits[split].items()):
            total.update(f"{split}/{name}/{len(array)}\0".encode())
            total.update(array.astype("<i4").tobytes())
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


def prepared_folder(storage: Path) -> Path:
    return storage / "prepared"


def write_prepared(
    storage: Path, manifest: Manifest, splits: dict[str, dict[str, Int32]], invalid: Sequence[Problem]
) -> PreparedData:
    """Replaces what was prepared: parts first, the manifest, with their checksums, last."""
    folder = prepared_folder(storage)
    (folder / "manifest.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "reference", ignore_errors=True)
    parts = [
        write_atomically(folder / f"{split}.safetensors", lambda path, arrays=splits[split]: save_file(arrays, path))  # type: ignore[misc]
        for split in SPLITS
    ]
    lines = [json.dumps({"row": p.row, "problem": f"{p.place}: {p.problem}"}) + "\n" for p in invalid]
    parts.append(write_text_atomically(folder / "invalid.jsonl", "".join(lines)))
    manifest = manifest.model_copy(update={"parts": {part.name: sha256(part) for part in parts}})
    write_text_atomically(folder / "manifest.json", manifest.model_dump_json(indent=1))
    return open_prepared(storage)


def read_manifest(storage: Path) -> Manifest | None:
    """The manifest of what was prepared; None where nothing is, or where it cannot be read."""
    try:
        return Manifest.model_validate_json((prepared_folder(storage) / "manifest.json").read_text())
    except (FileNotFoundError, ValidationError):
        return None


def open_prepared(storage: Path) -> PreparedData:
    """The prepared data, every part checked. Raises DamagedDataError."""
    folder, manifest = prepared_folder(storage), read_manifest(storage)
    if manifest is None:
        raise DamagedDataError(f"{folder}: no readable manifest.json; stage `prepare` has not finished here")
    for name, expected in manifest.parts.items():
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            raise DamagedDataError(f"{path}: missing, or not what the manifest says; remove {folder} to prepare anew")
    train, evaluation = (Examples(load_file(folder / f"{split}.safetensors")) for split in SPLITS)
    return PreparedData(folder, manifest, train, evaluation)


def digest(value: object) -> str:
    """SHA-256 of a value as JSON, keys in order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
