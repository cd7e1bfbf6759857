"""Kinds of files that hold rows, by the ends of their names."""

from __future__ import annotations

from collections.abc import Iterable

_TEXT = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_PACKED = ("", ".gz", ".zst")
KINDS = ".jsonl, .ndjson, .json, .csv, .tsv (each also .gz or .zst), .arrow or .parquet"
"""In words, the suffixes of files that hold rows."""
_SUFFIXES = {f"{kind}{packed}": kind for kind in _TEXT for packed in _PACKED}
_SUFFIXES |= {".arrow": ".arrow", ".parquet": ".parquet"}


def suffix_of(name: str) -> str:
    """Its suffix, of a compressed file both; empty where no rows are read from such a file."""
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")


def kind_of_file(name: str) -> str:
    """Its suffix without that of a compression; empty as above."""
    return _SUFFIXES.get(suffix_of(name), "")


def rows_among(names: Iterable[str]) -> list[str]:
    """The files of a folder that hold rows, in order. Beside others a .json describes them, as `datasets` writes it."""
    kinds = {name: kind for name in sorted(names) if (kind := kind_of_file(name))}
    others = [name for name, kind in kinds.items() if kind != ".json"]
    return others or list(kinds)
