"""Prompt groups to padded rows: a prompt once, its completions as branches that do not see each other.

A row is [prompt | completion | completion | ...]. Positions restart after the prompt in every branch, and a token
attends to its own branch and to the prompt, so each completion is computed as if it stood alone behind the prompt.
The last token of a completion predicts nothing and is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from alignment_trainer.data.examples import PreferenceExample, TokenIds

PROMPT, PADDING = 0, -1


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """A prompt with the completions that share it: two for a preference pair, G for a group of samples."""

    prompt: TokenIds
    completions: tuple[TokenIds, ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.completions or not all(self.completions):
            raise ValueError("a prompt group needs a prompt and completions of at least one token each")

    @property
    def length(self) -> int:
        """Tokens of the packed row."""
        return len(self.prompt) + sum(len(c) - 1 for c in self.completions)


@dataclass(frozen=True)
class PackedBatch:
    """Rows ready for a model. `n` counts the completion tokens of all rows, in order of row, completion, token.

    input_ids, position_ids: (rows, length) int64, padded on the right.
    branch: (rows, length) int64; 0 in the prompt, 1, 2, ... in the completions, -1 in the padding.
    predictors: (n,) index into the flattened rows: the position whose hidden state predicts the token.
    targets: (n,) the completion tokens.
    sequence: (n,) which completion of the batch a token belongs to.
    sequences: completions in the batch.
    """

    input_ids: Tensor
    position_ids: Tensor
    branch: Tensor
    predictors: Tensor
    targets: Tensor
    sequence: Tensor
    sequences: int

    def to(self, device: torch.device) -> "PackedBatch":
        moved = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return PackedBatch(**moved, sequences=self.sequences)

    def sum_per_sequence(self, token_values: Tensor) -> Tensor:
        """(n,) values of tokens to (sequences,) sums."""
        return token_values.new_zeros(self.sequences).index_add(0, self.sequence, token_values)


def pair_group(example: PreferenceExample) -> PromptGroup:
    """Sequence 0 is the chosen completion, sequence 1 the rejected one."""
    return PromptGroup(example.prompt, (example.chosen, example.rejected))


def pack(groups: Sequence[PromptGroup]) -> PackedBatch:
    """One row for each group, in the order given, padded to the longest."""
    shape = (len(groups), max(group.length for group in groups))
    input_ids, position_ids = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    branch = torch.full(shape, PADDING, dtype=torch.int64)
    predictors: list[int] = []
    targets: list[int] = []
    lengths: list[int] = []
    for row, group in enumerate(groups):
        tokens, positions, branches, before = _layout(group)
        input_ids[row, : group.length] = torch.tensor(tokens)
        position_ids[row, : group.length] = torch.tensor(positions)
        branch[row, : group.length] = torch.tensor(branches)
        predictors.extend(row * shape[1] + position for position in before)
        targets.extend(token for completion in group.completions for token in completion)
        lengths.extend(len(completion) for completion in group.completions)
    return PackedBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        branch=branch,
        predictors=torch.tensor(predictors),
        targets=torch.tensor(targets),
        sequence=torch.repeat_interleave(torch.tensor(lengths)),
        sequences=len(lengths),
    )


def _layout(group: PromptGroup) -> tuple[list[int], list[int], list[int], list[int]]:
    """Tokens, positions and branches of a row, and for each completion token the place that predicts it."""
    depth = len(group.prompt)
    tokens, positions, branches = list(group.prompt), list(range(depth)), [PROMPT] * depth
    before: list[int] = []
    for number, completion in enumerate(group.completions, start=1):
        start = len(tokens)
        before.extend([depth - 1, *range(start, start + len(completion) - 1)])
        tokens.extend(completion[:-1])
        positions.extend(range(depth, depth + len(completion) - 1))
        branches.extend([number] * (len(completion) - 1))
    return tokens, positions, branches, before


def branch_attends(branch: Tensor) -> Tensor:
    """Who may look at whom: earlier tokens of the own branch and of the prompt.

    branch: (rows, length). Returns bool (rows, 1, queries, keys), True where attention is allowed. Padding looks at
    itself, so that no query has an empty softmax.
    """
    query, key = branch[:, :, None], branch[:, None, :]
    causal = torch.ones(branch.shape[1], branch.shape[1], dtype=torch.bool, device=branch.device).tril()
    return (causal & ((query == key) | (key == PROMPT)))[:, None]
