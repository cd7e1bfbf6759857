"""How a trainee's state is spread over its ranks."""

from __future__ import annotations

from alignment_api.contract.spec import Sharding, Training


def sharding_of(training: Training, ranks: int) -> Sharding:
    """The engine: as the spec says, else `none` for one rank and `fsdp2` for more.

    Raises ValueError for several ranks without sharding.
    """
    sharding = training.sharding or default_sharding(ranks)
    if sharding == "none" and ranks > 1:
        raise ValueError(f"spec.training.sharding: `none` is for one rank, found {ranks}; write fsdp2, or leave it out")
    return sharding


def default_sharding(ranks: int) -> Sharding:
    """The engine where the spec names none."""
    return "none" if ranks == 1 else "fsdp2"
