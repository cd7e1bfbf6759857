"""Intervals against published and hand-computed numbers."""

import math

import numpy as np
import pytest

from alignment_trainer.data.statistics import mean_interval, share_interval, standard_error, wilson


def test_wilson_agrees_with_a_published_table() -> None:
    # Newcombe 1998, table I, method 3: 81/263, 15/148, 0/20, 1/29
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hits, count), bounds in published.items():
        assert wilson(hits / count, count) == pytest.approx(bounds, abs=5e-5)


def test_pairs_of_prompts_of_their_own_get_the_plain_wilson_interval() -> None:
    interval = share_interval(np.array([1.0] * 15 + [0.0] * 133), range(148))
    assert (interval.low, interval.high) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert interval.count == 148


def test_ties_count_a_half_and_include_chance() -> None:
    interval = share_interval(np.full(40, 0.5), range(40))
    assert interval.value == 0.5
    assert interval.low < 0.5 < interval.high


def test_copies_of_the_same_pairs_do_not_narrow_the_interval() -> None:
    values = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0])
    once = share_interval(values, range(8))
    copied = share_interval(np.repeat(values, 5), np.repeat(np.arange(8), 5).tolist())
    # sum of squares 1.5: by prompt 8/7 * 25 * 1.5 / 40^2, as if independent 5 * 1.5 / (40 * 39); effect 5.571
    assert (copied.low, copied.high) == pytest.approx(wilson(0.75, 40 / (8 / 7 * 37.5 / 1600 / (7.5 / 1560))))
    assert copied.high - copied.low == pytest.approx(once.high - once.low, rel=0.06)
    assert copied.count == 40


def test_a_share_of_one_is_as_wide_as_its_prompts_are_few() -> None:
    interval = share_interval(np.ones(30), np.repeat(np.arange(10), 3).tolist())
    assert (interval.low, interval.high) == pytest.approx(wilson(1.0, 10))


def test_the_standard_error_of_clusters_by_hand() -> None:
    # mean 3; residuals -2, -1 | 0 | 3; cluster sums -3, 0, 3; sqrt(3/2 * 18) / 4
    assert standard_error(np.array([1.0, 2.0, 3.0, 6.0]), ["a", "a", "b", "c"]) == pytest.approx(math.sqrt(27) / 4)


def test_the_standard_error_of_single_pairs_is_the_usual_one() -> None:
    values = np.array([1.0, 2.0, 4.0, 8.0])
    assert standard_error(values, range(4)) == pytest.approx(np.std(values, ddof=1) / 2)


def test_a_mean_interval_is_symmetric() -> None:
    interval = mean_interval(np.array([1.0, 2.0, 4.0, 8.0]), range(4))
    assert interval.value == 3.75
    assert interval.high - 3.75 == pytest.approx(1.959964 * np.std([1, 2, 4, 8], ddof=1) / 2, rel=1e-6)
