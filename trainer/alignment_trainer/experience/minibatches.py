"""Which completions an optimizer step of an update sees, and which of them a rank computes at once. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.experience import subgroups
from alignment_trainer.data.microbatches import plan_microbatches
from alignment_trainer.data.packing import pack


@dataclass(frozen=True)
class UpdateKey:
    """Names one update, so that a repeat of it is harmless. All counted from 0; step: steps done before it."""

    attempt: int
    step: int
    epoch: int
    minibatch: int


@dataclass(frozen=True)
class Micro:
    """What one rank computes at once: prompts with some of their completions.

    indices: of those completions, in the order in which they are packed. counts: False where it weighs nothing.
    """

    groups: tuple[PromptGroup, ...]
    indices: tuple[int, ...]
    counts: bool


def minibatches(
    groups: Sequence[PromptGroup], trained: Sequence[bool], batch_size: int, seed: tuple[int, int, int]
) -> tuple[tuple[int, ...], ...]:
    """Every completion that is trained on once, in parts of about `batch_size` that differ by one at most.

    None at all where no completion is. Prompts are shuffled by `seed` (job, step, epoch); the completions of one stay
    together, so that they share it.
    """
    sizes = [len(group.completions) for group in groups]
    starts = np.cumsum([0, *sizes[:-1]])
    order = np.random.default_rng(seed).permutation(len(groups))
    every = np.concatenate([np.arange(starts[place], starts[place] + sizes[place]) for place in order])
    indices = every[np.array(trained)[every]]
    if not len(indices):
        return ()
    parts = max(1, round(len(indices) / batch_size))
    return tuple(tuple(int(index) for index in part) for part in np.array_split(indices, parts))


def plan_micros(
    groups: Sequence[PromptGroup], indices: Sequence[int], ranks: int, micro_tokens: int
) -> tuple[tuple[Micro, ...], ...]:
    """For each rank the micro-batches of these completions; as many on every rank."""
    chosen = [
        (PromptGroup(group.prompt, group.completions[piece.start : piece.stop]), places[piece.start : piece.stop])
        for group, places in subgroups(groups, indices)
        for piece in pack.cut(group, micro_tokens)
    ]
    shares = plan_microbatches([group.length for group, _ in chosen], ranks, micro_tokens)
    return tuple(
        tuple(
            Micro(
                tuple(chosen[place][0] for place in plan.places),
                tuple(index for place in plan.places for index in chosen[place][1]),
                plan.counts,
            )
            for plan in share
        )
        for share in shares
    )
