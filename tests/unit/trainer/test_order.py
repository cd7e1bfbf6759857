"""Sampler, micro-batches and learning rate: pure functions of a position."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_trainer.algorithms.schedule import WarmupCosine
from alignment_trainer.data.microbatches import MicroBatch, plan_microbatches
from alignment_trainer.data.sampler import Sampler


def test_an_epoch_shows_every_row_once_and_keeps_its_last_partial_batch():
    sampler = Sampler(rows=10, batch_size=4, seed=0)
    batches = [sampler.batch(step) for step in range(3)]
    assert [len(batch) for batch in batches] == [4, 4, 2]
    assert sorted(index for batch in batches for index in batch) == list(range(10))


def test_the_next_epoch_has_another_order_and_another_seed_another_one_still():
    first, second = Sampler(50, 50, seed=0).batch(0), Sampler(50, 50, seed=0).batch(1)
    assert first != second
    assert Sampler(50, 50, seed=1).batch(0) not in (first, second)


def test_a_batch_depends_on_its_step_alone():
    assert Sampler(10, 4, seed=5).batch(7) == Sampler(10, 4, seed=5).batch(7)


def test_max_steps_wins_over_epochs():
    assert Sampler(10, 4, 0).total_steps(epochs=2, max_steps=None) == 6
    assert Sampler(10, 4, 0).total_steps(epochs=2, max_steps=5) == 5


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no training rows"):
        Sampler(0, 4, 0)


def test_one_rank_cuts_its_rows_by_the_budget_longest_first():
    plan = plan_microbatches([10, 50, 40, 12], ranks=1, micro_tokens=100)
    assert plan == ((MicroBatch((1, 2)), MicroBatch((3, 0))),)


def test_two_ranks_share_tokens_not_rows():
    plan = plan_microbatches([60, 20, 20, 20], ranks=2, micro_tokens=100)
    assert plan == ((MicroBatch((0,)),), (MicroBatch((1, 2, 3)),))


def test_a_rank_without_rows_repeats_the_shortest_one_without_weight():
    assert plan_microbatches([30], ranks=2, micro_tokens=10) == (
        (MicroBatch((0,)),),
        (MicroBatch((0,), counts=False),),
    )


@given(st.lists(st.integers(2, 200), min_size=1, max_size=30), st.integers(1, 5), st.integers(10, 500))
def test_every_row_counts_once_and_all_ranks_meet_equally_often(lengths, ranks, micro_tokens):
    plan = plan_microbatches(lengths, ranks, micro_tokens)
    counted = [place for share in plan for micro in share if micro.counts for place in micro.places]
    assert sorted(counted) == list(range(len(lengths)))
    assert len({len(share) for share in plan}) == 1
    for micro in (micro for share in plan for micro in share):
        assert sum(lengths[place] for place in micro.places) <= micro_tokens or len(micro.places) == 1


def test_the_rate_climbs_to_its_peak_and_falls_to_zero_on_a_cosine():
    """10 steps, 2 of them warm-up; step 6 is half-way down: cos(pi/2) = 0."""
    rate = WarmupCosine(peak=1.0, total_steps=10, warmup_fraction=0.2)
    assert [rate(0), rate(1), rate(2)] == [0.5, 1.0, 1.0]
    assert rate(6) == pytest.approx(0.5)
    assert rate(9) == pytest.approx(0.0380602)  # (1 + cos(7 pi / 8)) / 2


def test_without_warm_up_the_first_step_has_the_peak_rate():
    assert WarmupCosine(peak=2.0, total_steps=1, warmup_fraction=0.0)(0) == 2.0
