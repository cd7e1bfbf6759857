"""Which blocks of queries attend to which blocks of keys in packed rows: for FlexAttention, without a mask of tokens.

The rule is that of `branch_attention`: a token sees, up to itself, the prompt of its row and its own branch. Blocks of
both are none, some or all of it; the kernel asks the rule for tokens in those of some alone. torch's own
`create_block_mask` finds the same from a (tokens x tokens) mask, 4 GB at 65,000 tokens; it is the oracle of the test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import getclosurevars
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from alignment_trainer.data.packing import PackedBatch, on_device

BLOCK = 128
"""Tokens; FlexAttention's default."""
Layout = tuple[tuple[int, ...], ...]
_NONE, _SOME, _ALL = 0, 1, 2


class _Branch(NamedTuple):
    """Tokens from start to end; those of their row's prompt."""

    start: int
    end: int
    row: int
    prompt_end: int


def block_mask(batch: PackedBatch) -> BlockMask:
    """Of the batch's layout, on its device. Memory: (tokens / BLOCK) squared."""
    device, tokens = batch.input_ids.device, batch.input_ids.shape[1]
    rule = _rule(*(on_device(tensor.int(), device) for tensor in batch.places()))
    kinds = _block_kinds(batch.layout, BLOCK)
    some, full = (_listed(kinds == kind, device) for kind in (_SOME, _ALL))
    return BlockMask.from_kv_blocks(*some, *full, BLOCK, mask_mod=rule, seq_lengths=(tokens, tokens))


def mask_on(mask: BlockMask, device: torch.device) -> BlockMask:
    """The same mask, of `block_mask`, on another device, with the tensors that its rule asks."""
    if mask.kv_num_blocks.device == device:
        return mask
    places = getclosurevars(mask.mask_mod).nonlocals
    rule = _rule(places["row"].to(device), places["branch"].to(device))
    listed = (mask.kv_num_blocks, mask.kv_indices, mask.full_kv_num_blocks, mask.full_kv_indices)
    some, some_at, full, full_at = (blocks.to(device) for blocks in listed if blocks is not None)
    return BlockMask.from_kv_blocks(some, some_at, full, full_at, BLOCK, mask_mod=rule, seq_lengths=mask.seq_lengths)


def _rule(row: Tensor, branch: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Whether a query sees a key, by row and branch of each token, both (tokens,)."""

    def attends(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = (branch[query] == branch[key]) | (branch[key] == 0)
        return (query >= key) & (row[query] == row[key]) & same

    return attends


def _block_kinds(layout: Layout, size: int) -> NDArray[np.int8]:
    """(blocks, blocks): what a block of queries sees of a block of keys."""
    branches = list(_branches(layout))
    tokens, first = branches[-1].end, 0
    blocks = -(-tokens // size)
    kinds = np.zeros((blocks, blocks), np.int8)
    for block in range(blocks):
        start, end = block * size, min(tokens, (block + 1) * size)
        while branches[first].end <= start:
            first += 1
        here = []
        for branch in branches[first:]:
            if branch.start >= end:
                break
            here.append(branch)
        for low, high in _seen_by_any(here, end):
            kinds[block, low // size : -(-high // size)] = _SOME
        for low, high in _seen_by_all(here, start) if end - start == size else ():
            kinds[block, -(-low // size) : high // size] = _ALL
    return kinds


def _branches(layout: Layout) -> Iterator[_Branch]:
    """Prompts, too; empty ones left out."""
    start = 0
    for row in layout:
        begin = start
        for length in row:
            if length:
                yield _Branch(start, start + length, begin, begin + row[0])
            start += length


def _seen_by_any(here: list[_Branch], end: int) -> Iterator[tuple[int, int]]:
    """Keys that some query sees; here: the branches of the queries, of which the last is before `end`."""
    for branch in here:
        last = min(branch.end, end)
        yield branch.row, min(branch.prompt_end, last)
        yield branch.start, last


def _seen_by_all(here: list[_Branch], start: int) -> Iterator[tuple[int, int]]:
    """Keys that all queries from `start` on see."""
    if any(branch.row != here[0].row for branch in here):
        return
    prompt = here[0].row, min(here[0].prompt_end, start + 1)
    own = (here[0].start, start + 1) if len(here) == 1 else prompt
    if own[0] <= prompt[1]:
        yield prompt[0], max(prompt[1], own[1])
    else:
        yield from (prompt, own)


def _listed(wanted: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first; (1, 1, blocks) and (.., blocks)."""
    counts = wanted.sum(axis=1, dtype=np.int32)
    order = np.argsort(~wanted, axis=1, kind="stable").astype(np.int32)
    return tuple(on_device(torch.from_numpy(found)[None, None], device) for found in (counts, order))  # type: ignore[return-value]
