"""Learning rates as a function of the step, so that there is no scheduler state to save."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class WarmupCosine:
    """Linear climb to the peak over the first steps, then half a cosine down to zero at `total_steps`.

    warmup_fraction: share of the steps in the climb; the first of them already learns.
    """

    peak: float
    total_steps: int
    warmup_fraction: float

    def __call__(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0."""
        warmup = math.ceil(self.total_steps * self.warmup_fraction)
        if step < warmup:
            return self.peak * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.total_steps - warmup)
        return self.peak * 0.5 * (1 + math.cos(math.pi * progress))
