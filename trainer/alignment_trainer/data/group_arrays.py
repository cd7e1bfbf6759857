"""Prompt groups as flat arrays: on the wire, and in checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.process.errors import WireError

GROUP_LENGTHS = ("prompt_lengths", "completion_lengths", "completions_per_row")
GROUP_TENSORS = ("prompt_tokens", "completion_tokens", *GROUP_LENGTHS)
Arrays = dict[str, NDArray[Any]]
T = TypeVar("T")


def group_arrays(groups: Sequence[PromptGroup]) -> Arrays:
    """Prompts with their completions as flat int32 arrays."""
    completions = [completion for group in groups for completion in group.completions]
    return {
        "prompt_tokens": _flat([group.prompt for group in groups]),
        "prompt_lengths": int32_array([len(group.prompt) for group in groups]),
        "completion_tokens": _flat(completions),
        "completion_lengths": int32_array([len(completion) for completion in completions]),
        "completions_per_row": int32_array([len(group.completions) for group in groups]),
    }


def groups_of(arrays: Arrays) -> tuple[PromptGroup, ...]:
    """What `group_arrays` made arrays of. Raises WireError where the lengths do not add up."""
    tensors: dict[str, list[int]] = {name: arrays[name].tolist() for name in GROUP_TENSORS}
    completions = cut_by(tensors["completion_tokens"], tensors["completion_lengths"], "completion_tokens")
    prompts = cut_by(tensors["prompt_tokens"], tensors["prompt_lengths"], "prompt_tokens")
    per_row = cut_by(completions, tensors["completions_per_row"], "completion_lengths")
    if len(prompts) != len(per_row):
        raise WireError(
            f"{len(prompts)} `prompt_lengths`, {len(per_row)} `completions_per_row`; send one of each a row"
        )
    return tuple(PromptGroup(tuple(p), tuple(map(tuple, cs))) for p, cs in zip(prompts, per_row, strict=True))


def cut_by(values: Sequence[T], lengths: Sequence[int], name: str) -> list[Sequence[T]]:
    """Consecutive pieces. Raises WireError where the lengths do not add up."""
    ends = list(accumulate(lengths))
    if ends[-1] != len(values):
        raise WireError(f"`{name}` has {len(values)} entries, their lengths add up to {ends[-1]}")
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _flat(sequences: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    return int32_array([token for sequence in sequences for token in sequence])


def int32_array(values: Sequence[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)
