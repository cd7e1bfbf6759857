"""What one step samples and learns from.

N completions of P prompts, in order of prompt and sample; token values are padded to the longest, T tokens, with a
completion_mask of 1 where a token belongs to its completion. Everything is on the CPU, in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment_trainer.data.examples import PromptExample
from alignment_trainer.data.group_arrays import group_arrays, groups_of
from alignment_trainer.data.packing import PromptGroup


@dataclass(frozen=True)
class Rollout:
    """Completions as servers sampled them.

    rows: (P,) the prompts. groups: (P,) each prompt with its completions. mask: (N, T).
    logprobs: (N, T) rollout_logprobs, by the weights that sampled. finished: (N,) whether a completion ended by itself.
    versions: (N,) of those weights. dropped: row -> why its prompt is not trained on.
    """

    rows: tuple[PromptExample, ...]
    groups: tuple[PromptGroup, ...]
    mask: Tensor
    logprobs: Tensor
    finished: Tensor
    versions: Tensor
    dropped: Mapping[int, str]

    @property
    def lengths(self) -> Tensor:
        """(N,) tokens of each completion."""
        return self.mask.sum(dim=1)


@dataclass(frozen=True)
class Scored:
    """What others say of a rollout.

    components: reward's name -> (N,). scores: (N,) their weighted sum. Both are NaN where a function has skipped.
    policy_logprobs, ref_logprobs, values: (N, T) by the policy before its updates, by the frozen reference (the
    policy's own where there is none), by the critic (zeros where there is none).
    """

    rollout: Rollout
    components: Mapping[str, Tensor]
    scores: Tensor
    policy_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor

    @property
    def counted(self) -> Tensor:
        """(N,) 1 where a completion has a score to learn from, else 0."""
        return (~self.scores.isnan()).float()


@dataclass(frozen=True)
class Experience:
    """All that the updates of a step need; saved with a checkpoint that holds part of them. Shapes as above.

    learnt: (N, T) 1 where a token is learnt from: those of the mask whose completion has a score.
    """

    groups: tuple[PromptGroup, ...]
    mask: Tensor
    learnt: Tensor
    rollout_logprobs: Tensor
    policy_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def completions(self) -> int:
        """N."""
        return len(self.mask)

    def flat(self, name: str, indices: Sequence[int]) -> Tensor:
        """The values of a field for the tokens of these completions, one after the other: (tokens,)."""
        return flatten(getattr(self, name), self.mask, indices)


EXPERIENCE_FILE = "experience.safetensors"
_TENSORS = tuple(field.name for field in fields(Experience) if field.name != "groups")


def save_experience(experience: Experience, folder: Path) -> Path:
    """Writes it into a checkpoint's folder."""
    tensors = {name: torch.from_numpy(array) for name, array in group_arrays(experience.groups).items()}
    tensors |= {name: getattr(experience, name).contiguous() for name in _TENSORS}
    path = folder / EXPERIENCE_FILE
    save_file(tensors, path)
    return path


def load_experience(folder: Path) -> Experience:
    """What `save_experience` wrote."""
    tensors = load_file(folder / EXPERIENCE_FILE)
    groups = groups_of({name: tensor.numpy() for name, tensor in tensors.items() if name not in _TENSORS})
    return Experience(groups, **{name: tensors[name] for name in _TENSORS})


def mask_of(groups: Sequence[PromptGroup]) -> Tensor:
    """completion_mask (N, T) of the completions of these groups."""
    lengths = torch.tensor([len(completion) for group in groups for completion in group.completions])
    return (torch.arange(int(lengths.max())) < lengths[:, None]).float()


def padded(values: Tensor, mask: Tensor) -> Tensor:
    """(tokens,) of all completions, one after the other, to (N, T) with zeros where no token is."""
    return torch.zeros_like(mask).masked_scatter(mask.bool(), values.float())


def flatten(values: Tensor, mask: Tensor, indices: Sequence[int]) -> Tensor:
    """(N, T) to the (tokens,) of these completions, one after the other."""
    chosen = torch.tensor(list(indices))
    return values[chosen][mask[chosen].bool()]


def subgroups(groups: Sequence[PromptGroup], indices: Sequence[int]) -> list[tuple[PromptGroup, tuple[int, ...]]]:
    """Prompt groups of these completions alone, each with the indices of its completions.

    indices: places among all N completions. Consecutive ones of a prompt share it.
    """
    ends = [0]
    for group in groups:
        ends.append(ends[-1] + len(group.completions))
    owner = [place for place, (start, end) in enumerate(pairwise(ends)) for _ in range(start, end)]
    cut: list[tuple[int, list[int]]] = []
    for index in indices:
        if cut and cut[-1][0] == owner[index]:
            cut[-1][1].append(index)
        else:
            cut.append((owner[index], [index]))
    return [
        (
            PromptGroup(groups[place].prompt, tuple(groups[place].completions[i - ends[place]] for i in chosen)),
            tuple(chosen),
        )
        for place, chosen in cut
    ]
