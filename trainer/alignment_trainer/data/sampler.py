"""Which rows make step s: a pure function of (rows, batch size, seed, s), so a position is all there is to save.

Rows of one group, the pairs of one scored list, follow one another in an epoch: drawn one by one they would be passes
over the same completions that are spread over the epoch, and a model overfits to these (Ouyang et al. 2022, section
3.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Groups:
    """Where groups of consecutive rows begin, ascending, (groups,). rows: in all."""

    starts: NDArray[np.int64]
    rows: int

    @classmethod
    def of(cls, numbers: NDArray[np.integer[Any]]) -> Groups | None:
        """Of the rows' numbers in the user's data, (rows,): neighbours of one number; None where no two have one."""
        starts = np.flatnonzero(np.diff(numbers, prepend=-1) != 0)
        return cls(starts, len(numbers)) if len(starts) < len(numbers) else None

    def rows_of(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of the groups in this order, each group's in its own."""
        lengths = np.diff(self.starts, append=self.rows)[order]
        begins = np.cumsum(lengths) - lengths
        rows: NDArray[np.int64] = np.repeat(self.starts[order] - begins, lengths) + np.arange(self.rows)
        return rows


@dataclass(frozen=True)
class Sampler:
    """A new permutation each epoch; an epoch's last batch holds what is left of it.

    rows: rows of the data set. batch_size: rows per optimizer step, over the whole job. groups: of rows that follow one
    another, also over the end of a step; None where every row is for itself.
    """

    rows: int
    batch_size: int
    seed: int
    groups: Groups | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError("no training rows: the data set is empty")

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.rows // self.batch_size)

    def total_steps(self, epochs: int, max_steps: int | None) -> int:
        """Optimizer steps of the whole run; `max_steps` wins over `epochs`."""
        return max_steps or epochs * self.steps_per_epoch

    def batch(self, step: int) -> tuple[int, ...]:
        """Indices of the rows of optimizer step `step`, counted from 0."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.batch_size
        return tuple(_order(self.rows, self.seed, epoch, self.groups)[start : start + self.batch_size].tolist())

    def seen(self, steps: int) -> NDArray[np.int64]:
        """Indices of the rows that so many steps see, in the order of the rows."""
        if steps >= self.steps_per_epoch:
            return np.arange(self.rows)
        return np.sort(_order(self.rows, self.seed, 0, self.groups)[: steps * self.batch_size])


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int, groups: Groups | None) -> NDArray[np.int64]:
    """An epoch's permutation. Kept, because a million rows take 33 ms to draw, which every step would pay."""
    drawn = np.random.default_rng((seed, epoch)).permutation(rows if groups is None else len(groups.starts))
    return drawn if groups is None else groups.rows_of(drawn)
