"""What a reward function is told of a completion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """A completion.

    text: all but the token that ends it. tokens: how many it has. row: its prompt's, as the user wrote it. thinking:
    its prompt ends in the middle of a thought.
    """

    text: str
    tokens: int
    row: Mapping[str, Any]
    thinking: bool = False


def completion_text(tokenizer: Any, tokens: Sequence[int], ends: Sequence[int]) -> str:
    """What a completion says: every token but the last, where that is one of `ends`.

    Special tokens stay: some tokenizers have the tags that models think and answer in as such.
    """
    kept = tokens[:-1] if tokens and tokens[-1] in ends else tokens
    text: str = tokenizer.decode(kept, skip_special_tokens=False)
    return text
