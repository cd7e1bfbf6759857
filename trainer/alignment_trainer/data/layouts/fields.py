"""The columns of one row, by the names that layouts know."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from alignment_api.contract.inputs import Columns
from alignment_trainer.data.layouts.messages import unread_keys
from alignment_trainer.data.rows import InvalidRow, RawRow, kind_of
from alignment_trainer.process.errors import UserError

AS_THEY_ARE = Columns()
_SHOWN = 20
"""Columns in one message."""


class Fields:
    """A row's columns. A null is as good as absent: Parquet writes one where a row has no such column."""

    def __init__(self, value: Mapping[str, Any], columns: Columns = AS_THEY_ARE) -> None:
        self._value, self._renamed = value, renamed(columns)
        self._read: set[str] = set()
        self._left: set[str] = set()
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._value.get(self.column(name)) is not None

    def has_column(self, name: str) -> bool:
        """Whether there is such a column, be it null."""
        return self.column(name) in self._value

    def read(self, name: str) -> Any:
        """What stands in the column; None where nothing does."""
        self._read.add(self.column(name))
        return self._value.get(self.column(name))

    def column(self, name: str) -> str:
        """What the user calls it."""
        return self._renamed.get(name, name)

    def leave(self, keys: Iterable[str]) -> None:
        """Notes keys within a column that are not read: `completions[].model`."""
        self._left.update(keys)

    def take(self, key: str) -> None:
        """Notes that a key within a column is read: `completions[].score`."""
        self._taken.add(key)

    @property
    def unread(self) -> frozenset[str]:
        """Columns with something in them that nobody has read, and such keys within those that were read."""
        columns = frozenset(name for name, value in self._value.items() if value is not None)
        return (columns - self._read) | self.unread_within

    @property
    def unread_within(self) -> frozenset[str]:
        """Such keys alone: within messages, and what was left."""
        of_messages = (unread_keys(self._value.get(column), column) for column in self._read)
        return frozenset(chain(self._left, *of_messages)) - self._taken

    @property
    def listed(self) -> str:
        return listed(self._value)


def renamed(columns: Columns) -> dict[str, str]:
    """What the user calls each of our names that is called otherwise."""
    return columns.model_dump(by_alias=False, exclude_none=True)


def listed(names: Iterable[str]) -> str:
    """As they stand in a message."""
    found = [f"`{name}`" for name in names]
    return ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "") or "nothing"


def object_of(row: RawRow, example: str) -> Mapping[str, Any]:
    """What the row holds. Raises InvalidRow where that is no object."""
    if row.broken is not None:
        raise InvalidRow(row.broken)
    if not isinstance(row.value, Mapping):
        raise InvalidRow(f"{kind_of(row.value)}, not an object; write {example}")
    return row.value


def check_columns(columns: Columns, found: Iterable[frozenset[str]], source: str, field: str) -> None:
    """Raises UserError for a column that no row has, with the nearest that one has. field: of the data."""
    known = sorted(set(chain.from_iterable(found)))
    for name, column in renamed(columns).items():
        if known and column not in known:
            near = difflib.get_close_matches(column, known, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"found {listed(known)}"
            raise UserError("UnknownColumn", f"{field}.columns.{name}: no row of {source} has a `{column}`; {hint}")
