"""Log-probs or scores of many prompt groups without a gradient, over all ranks."""

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.microbatches import plan_microbatches
from alignment_trainer.data.packing import PackedBatch, Packing, pack
from alignment_trainer.process import distributed

Forward = Callable[[PackedBatch], Tensor]


@torch.no_grad()
def score_sequences(
    forward: Forward,
    packing: Packing,
    groups: Sequence[PromptGroup],
    micro_tokens: int,
    leave_if_asked: Callable[[], None] = lambda: None,
) -> Tensor:
    """Of every completion the sum of its predictors' numbers, on every rank; collective.

    That is its log-prob (nats) by a language model, whose packing is `pack`, its score by a reward model, with
    `pack_whole`.

    leave_if_asked: called before each micro-batch, on all ranks together; what it raises ends the work.
    Returns fp32 on the CPU, shape (groups, completions); every group has as many.
    """
    completions = len(groups[0].completions)
    pieces = packing.split(groups, micro_tokens)
    spans = _spans([len(piece.completions) for piece in pieces])
    scored = torch.zeros(len(groups) * completions, dtype=torch.float32)
    shares = plan_microbatches(list(map(packing.length, pieces)), distributed.world_size(), micro_tokens)
    for micro in shares[distributed.rank()]:
        leave_if_asked()
        batch = packing([pieces[place] for place in micro.places])
        numbers = forward(batch).cpu()
        if micro.counts:
            _put(scored, batch.sum_per_sequence(numbers), [spans[place] for place in micro.places])
    return distributed.sum_over_ranks(scored).view(len(groups), completions)


@torch.no_grad()
def token_values(forward: Forward, groups: Sequence[PromptGroup], micro_tokens: int) -> Tensor:
    """What `forward` says of every completion token, (tokens,), fp32 on the CPU, on every rank; collective.

    groups: without spans.
    """
    pieces = pack.split(groups, micro_tokens)
    spans = completion_spans(pieces)
    found = torch.zeros(spans[-1].stop, dtype=torch.float32)
    shares = plan_microbatches([piece.length for piece in pieces], distributed.world_size(), micro_tokens)
    for micro in shares[distributed.rank()]:
        values = forward(pack([pieces[place] for place in micro.places])).float().cpu()
        if micro.counts:
            _put(found, values, [spans[place] for place in micro.places])
    return distributed.sum_over_ranks(found)


def completion_spans(groups: Sequence[PromptGroup]) -> list[slice]:
    """Where each group's completion tokens stand among those of all groups, one after the other."""
    return _spans([group.completion_tokens for group in groups])


def _spans(lengths: Sequence[int]) -> list[slice]:
    ends = list(accumulate(lengths))
    return [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _put(found: Tensor, values: Tensor, spans: Sequence[slice]) -> None:
    """Consecutive values to these places."""
    parts = torch.split(values, [span.stop - span.start for span in spans])
    for span, part in zip(spans, parts, strict=True):
        found[span] = part
