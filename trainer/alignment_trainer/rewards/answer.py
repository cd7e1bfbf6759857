"""What a reward function is told of a completion."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """A completion. text: without special tokens. tokens: how many it has. row: its prompt's, as the user wrote it."""

    text: str
    tokens: int
    row: Mapping[str, Any]
