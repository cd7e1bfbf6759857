"""Which rank computes which rows of a batch, in which micro-batches. Pure, and the same on every rank.

A prompt group that is larger than a micro-batch is split before (`Packing.split`), so that no row is.

Ranks that shard a model meet in collectives inside forward and backward, so all get the same number of micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class MicroBatch:
    """Places in the batch that are computed together.

    counts: False for a repeat that keeps a rank in step with the others; it weighs nothing.
    """

    places: tuple[int, ...]
    counts: bool = True


def plan_microbatches(lengths: Sequence[int], ranks: int, micro_tokens: int) -> tuple[tuple[MicroBatch, ...], ...]:
    """For each rank its micro-batches: at most `micro_tokens` in each, one row at least.

    lengths: tokens of each row of the batch.
    """
    shares = [_cut(share, lengths, micro_tokens) for share in _share(lengths, ranks)]
    count = max(len(share) for share in shares)
    filler = min(range(len(lengths)), key=lengths.__getitem__)
    return tuple(_stretch(share, count, filler) for share in shares)


def cut_by_tokens(lengths: Sequence[int], tokens: int) -> list[range]:
    """Consecutive rows in pieces of at most so many tokens, one row at least."""
    starts, left = list[int](), 0
    for place, length in enumerate(lengths):
        if place and length <= left:
            left -= length
        else:
            starts.append(place)
            left = tokens - length
    return [range(start, end) for start, end in pairwise([*starts, len(lengths)])]


def _share(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Longest first to the rank with the fewest tokens so far: within 4/3 of the best balance (Graham 1969)."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [0] * ranks
    for place in sorted(range(len(lengths)), key=lambda p: (-lengths[p], p)):
        rank = min(range(ranks), key=lambda r: (tokens[r], r))
        shares[rank].append(place)
        tokens[rank] += lengths[place]
    return shares


def _cut(share: list[int], lengths: Sequence[int], micro_tokens: int) -> list[tuple[int, ...]]:
    """Greedy, in the order of the share."""
    pieces = cut_by_tokens([lengths[place] for place in share], micro_tokens)
    return [tuple(share[piece.start : piece.stop]) for piece in pieces]


def _stretch(share: list[tuple[int, ...]], count: int, filler: int) -> tuple[MicroBatch, ...]:
    """Exactly `count` micro-batches: split the fullest ones first, then repeat one row without weight."""
    parts = list(share)
    while len(parts) < count and any(len(part) > 1 for part in parts):
        widest = max(range(len(parts)), key=lambda p: len(parts[p]))
        part = parts.pop(widest)
        half = (len(part) + 1) // 2
        parts[widest:widest] = [part[:half], part[half:]]
    missing = count - len(parts)
    return (*(MicroBatch(part) for part in parts), *[MicroBatch((filler,), counts=False)] * missing)
