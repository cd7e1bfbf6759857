"""Log-probs or scores of many prompt groups without a gradient, over all ranks."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from alignment_trainer.data.microbatches import plan_microbatches
from alignment_trainer.data.packing import PackedBatch, PromptGroup, pack
from alignment_trainer.model.tasks import Pack
from alignment_trainer.process import distributed

Forward = Callable[[PackedBatch], Tensor]


@torch.no_grad()
def score_sequences(
    forward: Forward,
    pack: Pack,
    groups: Sequence[PromptGroup],
    micro_tokens: int,
    leave_if_asked: Callable[[], None] = lambda: None,
    completions: int = 2,
) -> Tensor:
    """Of every completion the sum of its predictors' numbers, on every rank; collective.

    That is its log-prob (nats) by a language model whose rows `pack` lays out, its score by a reward model with
    `pack_whole`.

    leave_if_asked: called before each micro-batch, on all ranks together; what it raises ends the work.
    completions: of every group.
    Returns fp32 on the CPU, shape (groups, completions).
    """
    scored = torch.zeros(len(groups), completions, dtype=torch.float32)
    shares = plan_microbatches([group.length for group in groups], distributed.world_size(), micro_tokens)
    for micro in shares[distributed.rank()]:
        leave_if_asked()
        batch = pack([groups[place] for place in micro.places])
        numbers = forward(batch).cpu()
        if micro.counts:
            scored[list(micro.places)] = batch.sum_per_sequence(numbers).view(len(micro.places), -1)
    return distributed.sum_over_ranks(scored)


@torch.no_grad()
def token_values(forward: Forward, groups: Sequence[PromptGroup], micro_tokens: int) -> Tensor:
    """What `forward` says of every completion token, (tokens,), fp32 on the CPU, on every rank; collective."""
    spans = completion_spans(groups)
    found = torch.zeros(spans[-1].stop, dtype=torch.float32)
    shares = plan_microbatches([group.length for group in groups], distributed.world_size(), micro_tokens)
    for micro in shares[distributed.rank()]:
        values = forward(pack([groups[place] for place in micro.places])).float().cpu()
        if micro.counts:
            parts = torch.split(values, [spans[place].stop - spans[place].start for place in micro.places])
            for place, part in zip(micro.places, parts, strict=True):
                found[spans[place]] = part
    return distributed.sum_over_ranks(found)


def completion_spans(groups: Sequence[PromptGroup]) -> list[slice]:
    """Where each group's completion tokens stand among those of all groups, one after the other."""
    ends = list(accumulate(group.completion_tokens for group in groups))
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
