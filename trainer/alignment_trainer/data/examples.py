"""Tokenised rows, as the data store yields them and packing consumes them."""

from collections.abc import Sequence
from dataclasses import dataclass

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


PreferenceExamples = Sequence[PreferenceExample]
