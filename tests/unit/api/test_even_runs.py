"""Layers over GPUs: runs that nothing cuts more evenly."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from alignment_api.derived.even_runs import even_runs


def test_four_equal_layers_with_a_large_embedding_before_them() -> None:
    assert even_runs([30, 10, 10, 10, 10], 2) == [range(2), range(2, 5)]
    assert even_runs([30, 10, 10, 10, 10], 3) == [range(1), range(1, 4), range(4, 5)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any), st.integers(1, 9))
def test_the_largest_run_is_as_small_as_of_all_ways_to_cut(sizes: list[int], most: int) -> None:
    runs = even_runs(sizes, most)
    assert [place for run in runs for place in run] == list(range(len(sizes)))
    assert len(runs) <= most
    inner = range(1, len(sizes))
    cuts = [cut for count in range(min(most, len(sizes))) for cut in combinations(inner, count)]
    others = [max(sum(sizes[a:b]) for a, b in pairwise((0, *cut, len(sizes)))) for cut in cuts]
    assert max(sum(sizes[run.start : run.stop]) for run in runs) == min(others)
