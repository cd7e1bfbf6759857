"""Tokenised rows, as the data store yields them and packing consumes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """One prompt with the completion that was preferred and the one that was not.

    row: the row's number in the user's data, so that a complaint can name it.
    chosen, rejected: completion ids, with the final end-of-sequence id where the chat template gives one.
    """

    row: int
    prompt: TokenIds
    chosen: TokenIds
    rejected: TokenIds

    @property
    def completion_tokens(self) -> int:
        return len(self.chosen) + len(self.rejected)


@dataclass(frozen=True, slots=True)
class PromptExample:
    """A prompt that completions are sampled for.

    row: as above. prompt: ids up to the assistant's turn. fields: the row as the user wrote it, for reward functions.
    """

    row: int
    prompt: TokenIds
    fields: Mapping[str, Any]


PreferenceExamples = Sequence[PreferenceExample]
