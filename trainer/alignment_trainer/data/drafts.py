"""Files before they are written: a name, and content in pieces, which who writes them can hash meanwhile."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""By their names in a safetensors header."""
_ALIGNMENT = 8
"""Bytes; what comes after a safetensors header begins at a multiple."""


class Draft(Protocol):
    """A file that is not written yet."""

    @property
    def name(self) -> str:
        """Of the file."""

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The content, in order."""


@dataclass(frozen=True)
class TextDraft:
    """UTF-8."""

    name: str
    text: str

    def pieces(self) -> Iterator[bytes | memoryview]:
        yield self.text.encode()


@dataclass(frozen=True)
class TensorDraft:
    """A safetensors file. tensors: contiguous, on the CPU, and nobody's to change until they are written."""

    name: str
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The header, then each tensor's bytes where they lie, nothing copied; the widest dtypes first."""
        names = sorted(self.tensors, key=lambda name: (-self.tensors[name].itemsize, name))
        yield self._header(names)
        for name in names:
            yield self.tensors[name].reshape(-1).view(torch.uint8).numpy().data

    def _header(self, names: list[str]) -> bytes:
        entries: dict[str, Any] = {"__metadata__": dict(self.metadata)} if self.metadata else {}
        end = 0
        for name in names:
            tensor = self.tensors[name]
            begin, end = end, end + tensor.nbytes
            entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text
