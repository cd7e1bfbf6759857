"""How the rows of a source were read, for status."""

from __future__ import annotations

from alignment_api.contract.status import DataReading
from alignment_trainer.data.rows import Reading

_NAMED = 20
"""Columns that were not read, the first: rows may each have their own."""


class Readings:
    """Counts the rows of a source by layout."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._rows: dict[str, int] = {}
        self._unread: dict[str, dict[str, None]] = {}

    def add(self, reading: Reading) -> None:
        """One row more."""
        self._rows[reading.layout] = self._rows.get(reading.layout, 0) + 1
        unread = self._unread.setdefault(reading.layout, {})
        if len(unread) < _NAMED:
            unread.update(dict.fromkeys(sorted(reading.unread)))

    def reports(self) -> list[DataReading]:
        """One of each layout, the most frequent first."""
        return [
            DataReading(source=self._source, layout=layout, rows=rows, unread=list(self._unread[layout])[:_NAMED])
            for layout, rows in sorted(self._rows.items(), key=lambda found: -found[1])
        ]
