"""The manifests of tests/bad_manifests: each says in its head which gate refuses it, and with which words.

# expect: GATE: REGEX     GATE is apiserver, validate, condition or prepare; several lines are several gates
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "bad_manifests"
GATES = ("apiserver", "validate", "condition", "prepare")
_EXPECT = re.compile(r"# expect: (\w+): (.+)")


@dataclass(frozen=True)
class Expectation:
    """A gate refuses a manifest with words that match."""

    file: Path
    gate: str
    pattern: str

    def __str__(self) -> str:
        return self.file.stem


def expectations(gate: str | None = None) -> list[Expectation]:
    """Those of one gate, or all of them."""
    found = []
    for file in sorted(FOLDER.glob("*.yaml")):
        for line in file.read_text().splitlines():
            if match := _EXPECT.fullmatch(line):
                found.append(Expectation(file, match[1], match[2]))
    return [expectation for expectation in found if gate in (None, expectation.gate)]
