"""A few of the random moments of `make kills`."""

from __future__ import annotations

import pytest
from kills import Bench

SEEDS = (421, 7, 168)
"""Of kto, of sft with adapters, and of sft on two ranks: killed in the middle of a file and before a call on one each.
None is killed by the clock, which another machine's speed would move behind the end."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("seed", SEEDS)
def test_whenever_it_is_killed_it_goes_on_to_the_same_bits(bench: Bench, seed: int) -> None:
    told = bench.tell(seed)
    assert told.failure == ""
    assert told.kills >= 1
