"""Rows of a step that share a prompt, as one packed row: prompt and completions are computed once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.packing import Packing


@dataclass(frozen=True)
class Shared:
    """Consecutive rows in one group. places: of the rows in their step. columns: of each row, which of the group's
    completions are its own, in its order."""

    places: tuple[int, ...]
    group: PromptGroup
    columns: tuple[tuple[int, ...], ...]


def share_prompts(groups: Sequence[PromptGroup], rows: Sequence[int], packing: Packing, tokens: int) -> list[Shared]:
    """Neighbours that were one row of the user's data, such as the pairs of a scored list, in groups of at most so many
    tokens, one row at least; any other row as it is.

    groups: of each row. rows: its number in the data.
    """
    found: list[Shared] = []
    for place, (group, row) in enumerate(zip(groups, rows, strict=True)):
        if found and rows[place - 1] == row and found[-1].group.prompt == group.prompt:
            both = _joined(found[-1], place, group)
            if packing.length(both.group) <= tokens:
                found[-1] = both
                continue
        found.append(Shared((place,), group, (tuple(range(len(group.completions))),)))
    return found


def _joined(shared: Shared, place: int, group: PromptGroup) -> Shared:
    """With one row more, and those of its completions that are not there yet."""
    known = dict(zip(_trained(shared.group), range(len(shared.group.completions)), strict=True))
    columns = tuple(known.setdefault(one, len(known)) for one in _trained(group))
    completions = tuple(completion for completion, _ in known)
    plain = not shared.group.spans and not group.spans
    whole = PromptGroup(group.prompt, completions, () if plain else tuple(spans for _, spans in known))
    return Shared((*shared.places, place), whole, (*shared.columns, columns))


def _trained(group: PromptGroup) -> list[tuple[tuple[int, ...], tuple[tuple[int, int], ...]]]:
    """What tells completions from others: their tokens, and those that are trained on."""
    return list(zip(group.completions, group.trained, strict=True))
