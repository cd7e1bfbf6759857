"""Which rows make step s: a pure function of (rows, batch size, seed, s), so a position is all there is to save."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampler:
    """A new permutation each epoch; an epoch's last batch holds what is left of it.

    rows: rows of the data set. batch_size: rows per optimizer step, over the whole job.
    """

    rows: int
    batch_size: int
    seed: int

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
        return tuple(_order(self.rows, self.seed, epoch)[start : start + self.batch_size].tolist())

    def seen(self, steps: int) -> NDArray[np.int64]:
        """Indices of the rows that so many steps see, in the order of the rows."""
        if steps >= self.steps_per_epoch:
            return np.arange(self.rows)
        return np.sort(_order(self.rows, self.seed, 0)[: steps * self.batch_size])


@lru_cache(maxsize=2)
def _order(rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """An epoch's permutation. Kept, because a million rows take 33 ms to draw, which every step would pay."""
    return np.random.default_rng((seed, epoch)).permutation(rows)
