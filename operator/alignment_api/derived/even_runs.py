"""Units in a fixed order, as a model's layers are, cut into as many runs as there are GPUs."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate


def even_runs(sizes: Sequence[int], most: int) -> list[range]:
    """At most so many runs of consecutive units, of which the largest is as small as it can be. sizes: of the units."""
    until = list(accumulate(sizes))
    least = bisect_left(range(until[-1]), True, lo=max(sizes), key=lambda room: len(_filled(until, room)) <= most)
    return _filled(until, least)


def _filled(until: Sequence[int], room: int) -> list[range]:
    """As few runs as fit into so much room each. until: of each unit the sum of sizes up to its end."""
    runs, begin = list[range](), 0
    while begin < len(until):
        end = bisect_right(until, room + (until[begin - 1] if begin else 0))
        runs.append(range(begin, end))
        begin = end
    return runs
