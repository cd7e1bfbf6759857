"""Tokenised rows, as the data store yields them and packing consumes them."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, TypeVar

Absent = TypeVar("Absent", float, None)
TokenIds = tuple[int, ...]
Span = tuple[int, int]
"""Tokens of one completion from the first of these places to before the second."""
Spans = tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A prompt with the completions that share it: one, two of a preference pair, G of a group of samples.

    completions: ids, with the final end-of-sequence id where the chat template gives one. spans: of each completion
    the tokens that are trained on, in order, one token at least; empty where all tokens of all completions are.
    """

    prompt: TokenIds
    completions: tuple[TokenIds, ...]
    spans: tuple[Spans, ...] = ()

    def __post_init__(self) -> None:
        if not self.prompt or not self.completions or not all(self.completions):
            raise ValueError("a prompt group needs a prompt and completions of at least one token each")
        if self.spans and len(self.spans) != len(self.completions):
            raise ValueError(f"{len(self.spans)} completions have spans, of {len(self.completions)}")
        for completion, spans in zip(self.completions, self.spans, strict=False):
            places = [place for span in spans for place in span]
            if not places or any(end <= start for start, end in spans) or places != sorted(places):
                raise ValueError(f"spans {spans}: none, an empty one, or not in order")
            if places[0] < 0 or places[-1] > len(completion):
                raise ValueError(f"spans {spans} of a completion of {len(completion)} tokens")

    @property
    def length(self) -> int:
        """Tokens of the row that `pack` makes of it."""
        return len(self.prompt) + sum(len(c) - 1 for c in self.completions)

    @property
    def completion_tokens(self) -> int:
        """Tokens of all its completions."""
        return sum(map(len, self.completions))

    @property
    def trained(self) -> tuple[Spans, ...]:
        """Of each completion the tokens that are trained on: one span of all where none are written."""
        return self.spans or tuple(((0, len(completion)),) for completion in self.completions)

    @property
    def trained_lengths(self) -> tuple[int, ...]:
        """How many those are, of each completion."""
        return tuple(sum(end - start for start, end in spans) for spans in self.trained)

    def of(self, completions: slice) -> "PromptGroup":
        """The prompt with some of them."""
        return PromptGroup(self.prompt, self.completions[completions], self.spans[completions])


@dataclass(frozen=True, slots=True)
class Example:
    """A row of any offline algorithm: a prompt, and the completions that it is about.

    row: the row's number in the user's data, so that a complaint can name it. label: what the row says of its first
    completion, 1 that it is desirable; 0 where rows have no label. weight: what its loss counts in its step. margin: of
    the first completion's reward above the second's; None where the row has none. Both as single precision has them.
    Every row of one format has as many completions.
    """

    row: int
    group: PromptGroup
    label: int = 0
    weight: float = 1.0
    margin: float | None = None

    @property
    def prompt(self) -> TokenIds:
        return self.group.prompt

    @property
    def asked(self) -> TokenIds:
        """By which rows belong together: the prompt; a text that has but its first token for one is its own."""
        is_text = len(self.prompt) == len(self.group.completions) == 1
        return self.prompt + self.group.completions[0] if is_text else self.prompt

    def parts(self) -> dict[str, Sequence[int]]:
        """As arrays of numbers, from which `example_of` makes it again."""
        group, places = self.group, self.group.spans
        starts = accumulate(map(len, group.completions[:-1]), initial=0)
        joined = [start + place for start, spans in zip(starts, places, strict=False) for s in spans for place in s]
        return {
            "prompt": group.prompt,
            "completions": [token for completion in group.completions for token in completion],
            "lengths": list(map(len, group.completions)),
            "spans": joined,
            "label": (self.label,),
            "weight": () if self.weight == 1 else (_bits(self.weight),),
            "margin": () if self.margin is None else (_bits(self.margin),),
        }


TOKEN_PARTS = ("prompt", "completions", "lengths", "spans")
"""What a model's numbers of a row depend on. completions: the tokens of all, one after the other. lengths: tokens of
each. spans: starts and ends by turns, counted from the first completion's first token; none where all is trained on."""
NUMBER_PARTS = ("weight", "margin")
"""The bits of single precision; none of a weight of 1, and of no margin. Files have no such part where no row has."""
EXAMPLE_PARTS = (*TOKEN_PARTS, "label", *NUMBER_PARTS)


def example_of(row: int, parts: Sequence[TokenIds]) -> Example:
    """Of the numbers of EXAMPLE_PARTS."""
    prompt, tokens, lengths, places, (label,), weight, margin = parts
    edges = list(pairwise(accumulate(lengths, initial=0)))
    completions = tuple(tokens[start:end] for start, end in edges)
    spans = list(zip(places[::2], places[1::2], strict=True))
    by_completion = tuple(
        tuple((first - start, last - start) for first, last in spans if start <= first < end) for start, end in edges
    )
    group = PromptGroup(prompt, completions, by_completion if spans else ())
    return Example(row, group, label, _float(weight, 1.0), _float(margin, None))


def _bits(number: float) -> int:
    """Of single precision."""
    return int(struct.unpack("<i", struct.pack("<f", number))[0])


def _float(bits: TokenIds, absent: Absent) -> float | Absent:
    return float(struct.unpack("<f", struct.pack("<i", *bits))[0]) if bits else absent


@dataclass(frozen=True, slots=True)
class PromptExample:
    """A prompt that completions are sampled for.

    row: as above. prompt: ids up to the assistant's turn. fields: the row as the user wrote it, for reward functions.
    """

    row: int
    prompt: TokenIds
    fields: Mapping[str, Any]

    @property
    def asked(self) -> TokenIds:
        """As above."""
        return self.prompt

    def parts(self) -> dict[str, Sequence[int]]:
        """As arrays of numbers."""
        return {"prompt": self.prompt}
