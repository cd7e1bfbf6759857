"""Means of held-out pairs with 95% intervals."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from alignment_api.contract.status import Interval

Z95 = 1.959963984540054
"""Two-sided 95% quantile of the normal distribution."""
Values = NDArray[np.float64]


def share_interval(values: Values, clusters: Sequence[Hashable]) -> Interval:
    """A share with the Wilson score interval (Wilson 1927) at the effective number of independent pairs.

    values: (pairs,) of 1, 0, and 1/2 for a tie. clusters: (pairs,) the prompt of each; pairs of one prompt are not
    independent. Their number is divided by the design effect (Kish 1965): the cluster-robust variance of the mean over
    that of independent pairs, where it is above 1. Where all values agree it cannot be known, and every prompt counts
    once. Unlike a normal interval this one never leaves [0, 1] and has a width at a share of 0 or 1.
    """
    count, mean = len(values), float(np.mean(values))
    low, high = wilson(mean, _effective_count(values, clusters))
    return Interval(value=mean, low=low, high=high, count=count)


def _effective_count(values: Values, clusters: Sequence[Hashable]) -> float:
    count = len(values)
    independent = standard_error(values, range(count))
    if independent == 0:
        return len(set(clusters))
    return count / max(1.0, (standard_error(values, clusters) / independent) ** 2)


def mean_interval(values: Values, clusters: Sequence[Hashable]) -> Interval:
    """A mean with a normal interval whose standard error is robust to clusters. Same shapes as `share_interval`."""
    mean, error = float(np.mean(values)), standard_error(values, clusters)
    return Interval(value=mean, low=mean - Z95 * error, high=mean + Z95 * error, count=len(values))


def ratio_interval(sums: Values, counts: NDArray[np.int64], clusters: Sequence[Hashable]) -> Interval:
    """A mean over all tokens of all rows, sum(sums) / sum(counts), with the interval of `mean_interval`.

    Its error is that of the ratio's linear part, (s_i - r c_i) / mean(c) (Cochran 1977, section 6.3). sums, counts: of
    each row, (rows,).
    """
    ratio = float(np.sum(sums) / np.sum(counts))
    return mean_interval(ratio + (sums - ratio * counts) / np.mean(counts), clusters)


def difference_interval(values: Values, among: NDArray[np.bool_], clusters: Sequence[Hashable]) -> Interval:
    """The mean of some rows less that of the others, with the interval of `mean_interval`.

    Its error is that of the two means' linear parts. among: (rows,), true for some and false for others.
    """
    some, others = float(np.mean(values[among])), float(np.mean(values[~among]))
    share = float(np.mean(among))
    parts = np.where(among, (values - some) / share, (others - values) / (1 - share))
    return mean_interval(some - others + parts, clusters)


def exponential(of: Interval) -> Interval:
    """Of a value and its bounds; of 700 where they are above it, which fp64 still has."""
    value, low, high = (float(np.exp(min(number, 700.0))) for number in (of.value, of.low, of.high))
    return Interval(value=value, low=low, high=high, count=of.count)


def wilson(share: float, count: float) -> tuple[float, float]:
    """Bounds of the Wilson score interval of a share seen in so many independent trials."""
    shrink = 1 + Z95**2 / count
    middle = (share + Z95**2 / (2 * count)) / shrink
    half = Z95 * math.sqrt(share * (1 - share) / count + Z95**2 / (4 * count**2)) / shrink
    return max(0.0, middle - half), min(1.0, middle + half)


def standard_error(values: Values, clusters: Sequence[Hashable]) -> float:
    """Of the mean, with pairs of one cluster as dependent as they like (Liang & Zeger 1986; factor G / (G - 1)).

    sqrt(G/(G-1) sum_g (sum_{i in g} (v_i - mean))^2) / n. Zero for a single cluster, of which no variance is known.
    """
    numbers = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    if len(numbers) < 2:
        return 0.0
    sums = np.zeros(len(numbers))
    np.add.at(sums, [numbers[cluster] for cluster in clusters], values - np.mean(values))
    return float(math.sqrt(len(numbers) / (len(numbers) - 1) * np.sum(sums**2)) / len(values))
