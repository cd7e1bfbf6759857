"""Log-probs of many prompt groups without a gradient, over all ranks."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from alignment_trainer import distributed
from alignment_trainer.data.microbatches import plan_microbatches
from alignment_trainer.data.packing import PackedBatch, PromptGroup, pack

Forward = Callable[[PackedBatch], Tensor]


def sequence_logprobs(
    forward: Forward, batches: Sequence[Sequence[PromptGroup]], micro_tokens: int, completions: int = 2
) -> Tensor:
    """Summed log-probs (nats) of every completion, on every rank; collective.

    batches: groups that are planned together, as a training step plans its batch. The same groups in the same batches
    with the same `micro_tokens` and ranks go through the model in the very tensors that training uses, so that a
    policy that equals its reference differs from it by nothing, not even in bf16.
    completions: of every group.
    Returns fp32 on the CPU, shape (groups of all batches, completions), in their order.
    """
    scored = torch.zeros(sum(map(len, batches)), completions, dtype=torch.float32)
    first = 0
    for groups in batches:
        for places, sums in _score(forward, groups, micro_tokens):
            scored[[first + place for place in places]] = sums
        first += len(groups)
    return distributed.sum_over_ranks(scored)


@torch.no_grad()
def _score(
    forward: Forward, groups: Sequence[PromptGroup], micro_tokens: int
) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    shares = plan_microbatches([group.length for group in groups], distributed.world_size(), micro_tokens)
    for micro in shares[distributed.rank()]:
        batch = pack([groups[place] for place in micro.places])
        logprobs = forward(batch).cpu()
        if micro.counts:
            yield micro.places, batch.sum_per_sequence(logprobs).view(len(micro.places), -1)
