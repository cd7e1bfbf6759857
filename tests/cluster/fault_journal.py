"""Which single faults were met, and how each life ended: kept from run to run, for one state of the operator's code.

`python -m tests.cluster.fault_journal` prints the table of the state that is checked out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.rig.paths import REPOSITORY

FOLDER = REPOSITORY / "runs" / "faults"
PACKAGES = ("alignment_api", "alignment_operator")
"""What decides how a life ends. Other code starts a journal of its own."""
HEADER = "| life | fault | met | ended the same | otherwise | moment never came |\n|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Lived:
    """One life under one fault."""

    row: str
    """Course, fault, and its moment or answer: `dpo die 33`, `ppo pod 500`."""
    seconds: float
    differences: tuple[str, ...]
    """From the life without fault; empty where it ended the same."""
    struck: bool
    """Whether its moment came: a life has a write or an event more or less than another."""

    @property
    def kind(self) -> tuple[str, str]:
        """Course and fault."""
        course, fault, _ = self.row.split()
        return course, fault

    def __str__(self) -> str:
        found = "; ".join(self.differences) or "the same"
        return f"{self.row}: {self.seconds:.0f} s, {found}{'' if self.struck else ' (its moment never came)'}"


@dataclass
class Journal:
    """Lives in the order in which they ended. A row is lived once; one that ended otherwise stays so."""

    file: Path
    lives: dict[str, Lived] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.file.exists():
            self.lives = {lived.row: lived for lived in map(_read, self.file.read_text().splitlines())}

    def add(self, lived: Lived) -> None:
        """Note it, for later runs too."""
        self.lives[lived.row] = lived
        with self.file.open("a") as lines:
            lines.write(json.dumps(asdict(lived)) + "\n")

    def table(self) -> str:
        """How many ended the same, by life and fault, in Markdown."""
        return "\n".join((HEADER, *self._rows()))

    def _rows(self) -> Iterator[str]:
        met = Counter(lived.kind for lived in self.lives.values())
        same = Counter(lived.kind for lived in self.lives.values() if lived.struck and not lived.differences)
        otherwise = Counter(lived.kind for lived in self.lives.values() if lived.differences)
        for kind, count in sorted(met.items()):
            never = count - same[kind] - otherwise[kind]
            yield f"| {kind[0]} | {kind[1]} | {count} | {same[kind]} | {otherwise[kind]} | {never} |"


def _read(line: str) -> Lived:
    told = json.loads(line)
    return Lived(**told | {"differences": tuple(told["differences"])})


def open_journal(folder: Path = FOLDER) -> Journal:
    """That of the operator's code as it lies in the working tree."""
    folder.mkdir(parents=True, exist_ok=True)
    return Journal(folder / f"{code_digest()}.jsonl")


def code_digest() -> str:
    """Twelve hex digits that change with every file of PACKAGES."""
    files = (file for package in PACKAGES for file in sorted((REPOSITORY / "operator" / package).rglob("*.py")))
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(REPOSITORY)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


if __name__ == "__main__":
    print(open_journal().table())
