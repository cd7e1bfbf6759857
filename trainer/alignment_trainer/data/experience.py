"""What one step samples and learns from.

N completions of P prompts, in order of prompt and sample; token values are padded to the longest, T tokens, with a
completion_mask of 1 where a token belongs to its completion. Everything is on the CPU, in fp32.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays
from safetensors.torch import load_file
from torch import Tensor

from alignment_trainer.data.drafts import TensorDraft
from alignment_trainer.data.examples import PromptExample, PromptGroup, TokenIds
from alignment_trainer.data.files import sha256
from alignment_trainer.data.group_arrays import Arrays, cut_by, group_arrays, groups_of, int32_array
from alignment_trainer.data.storage import Storage
from alignment_trainer.process.errors import WireError, describe

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampled:
    """One completion. logprobs: of its tokens, by the weights of `version`. finished: it ended by itself."""

    tokens: TokenIds
    logprobs: tuple[float, ...]
    finished: bool
    version: int


@dataclass(frozen=True)
class Samples:
    """What has been sampled of a step's prompts so far, by a prompt's place in the step.

    completions: all of a prompt. dropped: why a prompt was given up.
    """

    completions: Mapping[int, tuple[Sampled, ...]] = field(default_factory=dict)
    dropped: Mapping[int, str] = field(default_factory=dict)

    def missing(self, prompts: int) -> tuple[int, ...]:
        """Places of the prompts that have yet to be sampled."""
        return tuple(place for place in range(prompts) if place not in self.completions and place not in self.dropped)


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
    policy's own where there is none), by the critic in units of the score (zeros where there is none).
    end_values: (N,) the critic's of the state in which a completion was cut off; 0 where it ended, or nobody asks.
    """

    rollout: Rollout
    components: Mapping[str, Tensor]
    scores: Tensor
    policy_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    end_values: Tensor

    @property
    def counted(self) -> Tensor:
        """(N,) 1 where a completion has a score to learn from, else 0."""
        return (~self.scores.isnan()).float()


@dataclass(frozen=True)
class Experience:
    """All that the updates of a step need; saved with a checkpoint that holds part of them. Shapes as above.

    learnt: (N, T) 1 where a token is learnt from: those of the mask whose completion has a loss.
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


def rollout_of(rows: Sequence[PromptExample], samples: Samples) -> Rollout:
    """All of a step's samples as tensors. Raises RuntimeError where every prompt was dropped."""
    if not samples.completions:
        raise RuntimeError(f"every prompt of the step was dropped; the first: {next(iter(samples.dropped.items()))}")
    places = sorted(samples.completions)
    groups = _groups(rows, samples)
    sampled = [one for place in places for one in samples.completions[place]]
    mask = mask_of(groups)
    return Rollout(
        rows=tuple(rows[place] for place in places),
        groups=groups,
        mask=mask,
        logprobs=padded(torch.tensor([value for one in sampled for value in one.logprobs]), mask),
        finished=torch.tensor([one.finished for one in sampled]),
        versions=torch.tensor([one.version for one in sampled]),
        dropped={rows[place].row: reason for place, reason in samples.dropped.items()},
    )


def _groups(rows: Sequence[PromptExample], samples: Samples) -> tuple[PromptGroup, ...]:
    return tuple(
        PromptGroup(rows[place].prompt, tuple(one.tokens for one in samples.completions[place]))
        for place in sorted(samples.completions)
    )


EXPERIENCE_FILE = "experience.safetensors"
SAMPLES_FILE, _SAMPLES_SUM = "samples.safetensors", "samples.sha256"
_TENSORS = tuple(field.name for field in fields(Experience) if field.name != "groups")


def experience_draft(experience: Experience) -> TensorDraft:
    """The file that a checkpoint in the middle of a step has beside the state."""
    tensors = {name: torch.from_numpy(array) for name, array in group_arrays(experience.groups).items()}
    return TensorDraft(EXPERIENCE_FILE, tensors | {name: getattr(experience, name).contiguous() for name in _TENSORS})


def load_experience(folder: Path) -> Experience:
    """What `experience_draft` was written as."""
    tensors = load_file(folder / EXPERIENCE_FILE)
    groups = groups_of({name: tensor.numpy() for name, tensor in tensors.items() if name not in _TENSORS})
    return Experience(groups, **{name: tensors[name] for name in _TENSORS})


def save_samples(rows: Sequence[PromptExample], samples: Samples, place: Storage) -> None:
    """Writes them beside the parts of a checkpoint, which may have been sealed before: whole, or not at all.

    rows: the step's prompts. The weights that sampled are those of the checkpoint, so what they sampled belongs to it.
    """
    places = sorted(samples.completions)
    sampled = [one for place in places for one in samples.completions[place]]
    arrays: Arrays = group_arrays(_groups(rows, samples)) | {
        "places": int32_array(places),
        "rows": int32_array([rows[place].row for place in places]),
        "logprobs": np.array([value for one in sampled for value in one.logprobs], dtype=np.float32),
        "finished": np.array([one.finished for one in sampled], dtype=np.bool_),
        "versions": int32_array([one.version for one in sampled]),
    }
    told = {"dropped": json.dumps(samples.dropped)}
    _, written = place.put(SAMPLES_FILE, [save_arrays(arrays, metadata=told)])
    place.put(_SAMPLES_SUM, [written.encode()])


def load_samples(rows: Sequence[PromptExample], place: Storage) -> Samples:
    """What `save_samples` wrote of these prompts; nothing where there is nothing, or not what was written."""
    folder = place.here((SAMPLES_FILE, _SAMPLES_SUM))
    path = folder / SAMPLES_FILE
    if not path.is_file():
        return Samples()
    try:
        if (folder / _SAMPLES_SUM).read_text() != sha256(path):
            raise WireError("its checksum is another one")
        return _read_samples(rows, path)
    except (OSError, SafetensorError, WireError, KeyError, ValueError) as error:
        log.warning("%s: %s; its prompts are sampled again", path, describe(error))
        return Samples()


def _read_samples(rows: Sequence[PromptExample], path: Path) -> Samples:
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        dropped = json.loads(file.metadata()["dropped"])
    places = arrays["places"].tolist()
    if [rows[place].row for place in places] != arrays["rows"].tolist():
        raise WireError("it is of other prompts")
    groups = groups_of(arrays)
    lengths = arrays["completion_lengths"].tolist()
    logprobs = iter(cut_by(arrays["logprobs"].tolist(), lengths, "logprobs"))
    ends = zip(arrays["finished"].tolist(), arrays["versions"].tolist(), strict=True)
    return Samples(
        {
            place: tuple(Sampled(tokens, tuple(next(logprobs)), *next(ends)) for tokens in group.completions)
            for place, group in zip(places, groups, strict=True)
        },
        {int(place): reason for place, reason in dropped.items()},
    )


def with_ends(groups: Sequence[PromptGroup], cut_off: Tensor) -> tuple[PromptGroup, ...]:
    """The groups, completions that were cut off a token longer: a value is that of the state before a token, and this
    token, whatever it is, asks for that of the end. cut_off: (N,) bool."""
    flags = iter(cut_off.tolist())
    return tuple(
        PromptGroup(group.prompt, tuple(one + one[-1:] if next(flags) else one for one in group.completions))
        for group in groups
    )


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
