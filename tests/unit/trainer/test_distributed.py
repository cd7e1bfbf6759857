"""Ranks that wait for rank 0, with a collective's timeout far below what they wait for."""

from __future__ import annotations

import pytest
from ranks import run_ranks

TIMEOUT = 3.0
"""Seconds of a collective; rank 0 takes three times as long over what it is asked."""


def test_ranks_wait_for_as_long_as_rank_0_lives() -> None:
    answers = run_ranks(2, "rank_bodies:ask_slowly", collective_timeout=TIMEOUT, seconds=3 * TIMEOUT)
    assert answers == [["found", 1], ["found", 1]]


def test_an_actor_of_two_ranks_survives_a_rollout_that_outlasts_a_collective(tmp_path) -> None:
    """And scoring that does."""
    arguments = {"folder": str(tmp_path), "seconds": 2 * TIMEOUT}
    losses, other = run_ranks(2, "rank_bodies:slow_online", collective_timeout=TIMEOUT, **arguments)
    assert len(losses) == 2
    assert other == []


def test_a_rank_whose_rank_0_is_gone_does_not_wait_on() -> None:
    with pytest.raises(AssertionError, match="rank 0 is gone"):
        run_ranks(2, "rank_bodies:ask_and_die", collective_timeout=TIMEOUT)
