"""A model's weights as files: which ones there are, what their headers say, and whether every number is finite."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from alignment_trainer.data.files import sha256
from alignment_trainer.model.mistakes import InvalidModelError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf")
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Dtypes of weights that can be trained or scored, as safetensors names them -> bytes of one."""
_EXPONENTS = {
    "F64": ("<u8", 0x7FF0000000000000),
    "F32": ("<u4", 0x7F800000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
}
"""Dtype -> its bits as integers, and the exponent's: all of these are set in infinity and NaN, and in nothing else."""
_PIECE_BYTES = 16 * 1024**2
"""Read at once: the memory that looking at every number takes."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor by its file's header. begin, end: its bytes in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


Stored = Mapping[str, StoredTensor]


def read_headers(folder: Path) -> Stored:
    """Every tensor of the model, by name. No weight is read.

    Raises InvalidModelError for a file that is missing or cut off, a name that stands twice, and an index that says
    something else than the files.
    """
    named = _index(folder)
    files = sorted(set(named.values())) if named else [SINGLE]
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        raise InvalidModelError(f"{folder} lacks {', '.join(missing)}; {_other_weights(folder)}")
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in read_header(folder / file).items():
            if name in stored:
                raise InvalidModelError(
                    f"tensor `{name}` is in {stored[name].file.name} and in {file}; which one counts is not said: "
                    "save the model anew"
                )
            stored[name] = tensor
    _check_index(named, stored)
    return stored


def count_parameters(stored: Stored) -> int:
    """Numbers in all tensors."""
    return sum(prod(tensor.shape) for tensor in stored.values())


def digest_of_finite(stored: Stored, used: frozenset[str], path: Path) -> str:
    """SHA-256 of a file, in one reading that also looks at every number of the tensors that are used.

    Raises InvalidModelError for the first one that is NaN or infinite.
    """
    tensors = {name: tensor for name, tensor in stored.items() if tensor.file == path and name in used}
    if not tensors:
        return sha256(path)
    total = hashlib.sha256()
    with path.open("rb") as file:
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
            total.update(file.read(tensor.begin - file.tell()))
            _read_tensor(file, name, tensor, total)
        while piece := file.read(_PIECE_BYTES):
            total.update(piece)
    return total.hexdigest()


def same_numbers(first: StoredTensor, second: StoredTensor) -> bool:
    """Whether two tensors hold the same bytes of the same dtype."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with first.file.open("rb") as one, second.file.open("rb") as other:
        one.seek(first.begin)
        other.seek(second.begin)
        left = first.end - first.begin
        while left > 0:
            size = min(left, _PIECE_BYTES)
            if one.read(size) != other.read(size):
                return False
            left -= size
    return True


def _read_tensor(file: BinaryIO, name: str, tensor: StoredTensor, total: Any) -> None:
    while (left := tensor.end - file.tell()) > 0:
        piece = file.read(min(left, _PIECE_BYTES))
        total.update(piece)
        if tensor.dtype in _EXPONENTS and not _finite(piece, tensor.dtype):
            raise InvalidModelError(
                f"tensor `{name}` in {tensor.file.name} holds a NaN or an infinity; take the weights from before they "
                "broke, or copy them again"
            )


def _finite(piece: bytes, dtype: str) -> bool:
    integers, exponent = _EXPONENTS[dtype]
    bits = np.frombuffer(piece, integers)
    return not bool(((bits & bits.dtype.type(exponent)) == exponent).any())


def _index(folder: Path) -> dict[str, str]:
    """Name -> file, by the index of weights in several files; empty where there is none."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    if (folder / SINGLE).is_file():
        raise InvalidModelError(
            f"{folder} has {SINGLE} and {INDEX}: two sets of weights, and what loads them do not agree which one "
            "counts; remove one"
        )
    try:
        index = json.loads(path.read_text())
        named, _ = index["weight_map"], index["metadata"]  # transformers asks for both
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidModelError(
            f"{path} lacks `weight_map`, which says where each tensor is, or `metadata`; copy it again"
        ) from error
    return dict(named)


def _check_index(named: Mapping[str, str], stored: Stored) -> None:
    """Of weights in one file there is no index to check."""
    for name, file in named.items():
        if name not in stored:
            raise InvalidModelError(f"{INDEX} says that tensor `{name}` is in {file}, which lacks it; copy both again")
        if stored[name].file.name != file:
            found = stored[name].file.name
            raise InvalidModelError(f"{INDEX} says that tensor `{name}` is in {file}; it is in {found}; save it anew")
    unnamed = sorted(stored.keys() - named.keys()) if named else []
    if unnamed:
        found = stored[unnamed[0]].file.name
        raise InvalidModelError(f"{INDEX} does not name tensor `{unnamed[0]}`, which is in {found}; save it anew")


def _other_weights(folder: Path) -> str:
    others = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if not others:
        return "weights are read from safetensors alone"
    return (
        f"it has {others[0]}, and weights are read from safetensors alone: a pickled file runs what it says; load it "
        "with transformers where you trust it, and write it again with save_pretrained"
    )


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file by name (format: 8 bytes of length, JSON, data). Raises InvalidModelError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size:
            raise InvalidModelError(f"{path} is not a safetensors file ({size} bytes); copy it again")
        try:
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
            header.pop("__metadata__", None)
            stored = {name: _stored(path, 8 + length, entry) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidModelError(
                f"{path} is not a safetensors file: its header is no JSON of tensors, each with `dtype`, `shape` and "
                "`data_offsets`; copy it again"
            ) from error
    end = max((tensor.end for tensor in stored.values()), default=8 + length)
    if end != size:
        raise InvalidModelError(f"{path} has {size} bytes, its header says {end}: it was cut off; copy it again")
    return stored


def _stored(path: Path, data: int, entry: Mapping[str, Any]) -> StoredTensor:
    begin, end = map(int, entry["data_offsets"])
    return StoredTensor(path, str(entry["dtype"]), tuple(map(int, entry["shape"])), data + begin, data + end)
