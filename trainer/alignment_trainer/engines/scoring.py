"""Log-probs or scores of many prompt groups without a gradient, over all ranks."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from alignment_trainer.data.microbatches import plan_microbatches
from alignment_trainer.data.packing import PackedBatch, PromptGroup, pack
from alignment_trainer.model.tasks import Pack
from alignment_trainer.process import distributed

Forward = Callable[[PackedBatch], Tensor]


def score_sequences(
    forward: Forward,
    pack: Pack,
    batches: Sequence[Sequence[PromptGroup]],
    micro_tokens: int,
    leave_if_asked: Callable[[], None] = lambda: None,
    completions: int = 2,
) -> Tensor:
    """Of every completion the sum of its predictors' numbers, on every rank; collective.

    That is its log-prob (nats) by a language model whose rows `pack` lays out, its score by a reward model with
    `pack_whole`.

    batches: groups that are planned together, as a training step plans its batch. The same groups in the same batches
    with the same `micro_tokens` and ranks go through the model in the very tensors that training uses, so that a
    policy that equals its reference differs from it by nothing, not even in bf16.
    leave_if_asked: called before each micro-batch, on all ranks together; what it raises ends the work.
    completions: of every group.
    Returns fp32 on the CPU, shape (groups of all batches, completions), in their order.
    """
    scored = torch.zeros(sum(map(len, batches)), completions, dtype=torch.float32)
    first = 0
    for groups in batches:
        for places, sums in _score(forward, pack, groups, micro_tokens, leave_if_asked):
            scored[[first + place for place in places]] = sums
        first += len(groups)
    return distributed.sum_over_ranks(scored)


@torch.no_grad()
def _score(
    forward: Forward,
    pack: Pack,
    groups: Sequence[PromptGroup],
    micro_tokens: int,
    leave_if_asked: Callable[[], None],
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    shares = plan_microbatches([group.length for group in groups], distributed.world_size(), micro_tokens)
    for micro in shares[distributed.rank()]:
        leave_if_asked()
        batch = pack([groups[place] for place in micro.places])
        numbers = forward(batch).cpu()
        if micro.counts:
            yield micro.places, batch.sum_per_sequence(numbers).view(len(micro.places), -1)


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
    ends = list(accumulate(sum(map(len, group.completions)) for group in groups))
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
