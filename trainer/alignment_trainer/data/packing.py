"""Prompt groups to one packed sequence: a prompt once, its completions as branches that do not see each other.

A row is [prompt | completion | completion | ...]; rows follow one another without padding. Positions restart after the
prompt in every branch, and a token attends to its own branch and to the prompt of its row, so each completion is
computed as if it stood alone behind its prompt. The last token of a completion predicts no token: `pack`, for log-probs
and values, leaves it out; `pack_whole`, for scores of whole completions, reads its state.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.microbatches import cut_by_tokens


@dataclass(frozen=True)
class PackedBatch:
    """Rows ready for a model. `n` counts predictors, in order of row, completion, token.

    `pack` makes one for each completion token that is trained on, `pack_whole` one for each completion.

    input_ids, position_ids: (1, tokens) int64.
    layout: of each row the tokens of its prompt and of each branch; a branch may have none.
    predictors: (n,) the position whose hidden state the head reads.
    targets: (n,) the completion tokens that are predicted; of `pack_whole` the last ones.
    sequence: (n,) which completion of the batch a predictor belongs to.
    sequences: completions in the batch.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: tuple[tuple[int, ...], ...]
    predictors: Tensor
    targets: Tensor
    sequence: Tensor
    sequences: int

    def to(self, device: torch.device) -> "PackedBatch":
        moved = {name: on_device(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return PackedBatch(**moved, layout=self.layout, sequences=self.sequences)

    def sum_per_sequence(self, token_values: Tensor) -> Tensor:
        """(n,) values of predictors to (sequences,) sums."""
        return token_values.new_zeros(self.sequences).index_add(0, self.sequence, token_values)

    def places(self) -> tuple[Tensor, Tensor]:
        """Row and branch (0: the prompt) of each token, both (tokens,), on the CPU."""
        row = torch.repeat_interleave(torch.tensor([sum(row) for row in self.layout]))
        branches = torch.tensor([branch for row in self.layout for branch in range(len(row))])
        return row, branches.repeat_interleave(torch.tensor([length for row in self.layout for length in row]))


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The same numbers there. A GPU is not waited for: it copies from pinned memory when it gets there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def _pack(groups: Sequence[PromptGroup]) -> PackedBatch:
    """One row for each group, in the order given; a predictor for each trained token, the state before it."""
    tokens: list[int] = []
    positions: list[int] = []
    predictors: list[int] = []
    targets: list[int] = []
    for group in groups:
        depth = len(group.prompt)
        tokens.extend(group.prompt)
        positions.extend(range(depth))
        last_of_prompt = len(tokens) - 1
        for completion, spans in zip(group.completions, group.trained, strict=True):
            start, inner = len(tokens), len(completion) - 1
            for first, end in spans:
                predictors.extend(() if first else (last_of_prompt,))
                predictors.extend(range(start + max(first, 1) - 1, start + end - 1))
                targets.extend(completion[first:end])
            tokens.extend(completion[:-1])
            positions.extend(range(depth, depth + inner))
    lengths = [length for group in groups for length in group.trained_lengths]
    return PackedBatch(
        input_ids=torch.tensor([tokens]),
        position_ids=torch.tensor([positions]),
        layout=tuple((len(group.prompt), *(len(c) - 1 for c in group.completions)) for group in groups),
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        sequence=torch.repeat_interleave(torch.tensor(lengths)),
        sequences=len(lengths),
    )


def _pack_whole(groups: Sequence[PromptGroup]) -> PackedBatch:
    """One row for each group with its last tokens, too; a predictor for each completion, the state of its last token.

    What a reward model reads: the score of a completion is a number of its end.
    """
    completions = [completion for group in groups for completion in group.completions]
    layout = tuple((len(group.prompt), *map(len, group.completions)) for group in groups)
    positions = [
        place
        for prompt, *branches in layout
        for start, length in ((0, prompt), *((prompt, branch) for branch in branches))
        for place in range(start, start + length)
    ]
    lengths = torch.tensor([length for row in layout for length in row])
    is_branch = torch.tensor([number > 0 for row in layout for number in range(len(row))])
    return PackedBatch(
        input_ids=torch.tensor([[t for group in groups for part in (group.prompt, *group.completions) for t in part]]),
        position_ids=torch.tensor([positions]),
        layout=layout,
        predictors=(lengths.cumsum(0) - 1)[is_branch],
        targets=torch.tensor([completion[-1] for completion in completions]),
        sequence=torch.arange(len(completions)),
        sequences=len(completions),
    )


@dataclass(frozen=True)
class Packing:
    """How groups become rows. with_ends: whether a row holds the last token of each completion."""

    lay_out: Callable[[Sequence[PromptGroup]], PackedBatch]
    with_ends: bool

    def __call__(self, groups: Sequence[PromptGroup]) -> PackedBatch:
        """One row for each group, in the order given."""
        return self.lay_out(groups)

    def length(self, group: PromptGroup) -> int:
        """Tokens of its row."""
        return group.length + self.with_ends * len(group.completions)

    def cut(self, group: PromptGroup, tokens: int) -> list[range]:
        """Its completions in consecutive pieces, each a row of at most so many tokens; one completion at least."""
        branches = [len(completion) - (not self.with_ends) for completion in group.completions]
        return cut_by_tokens(branches, tokens - len(group.prompt))

    def split(self, groups: Sequence[PromptGroup], tokens: int) -> list[PromptGroup]:
        """The same completions in the same order, in groups of at most so many tokens, one completion at least."""
        return [group.of(slice(piece.start, piece.stop)) for group in groups for piece in self.cut(group, tokens)]


pack = Packing(_pack, with_ends=False)
"""For log-probs and values: a predictor for each completion token that is trained on, the state before it."""
pack_whole = Packing(_pack_whole, with_ends=True)
"""For scores: a predictor for each completion, the state of its last token."""
