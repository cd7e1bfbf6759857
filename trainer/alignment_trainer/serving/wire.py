"""What `POST /v1/logprobs` and `POST /v1/scores` carry: safetensors in, safetensors out (docs/architecture.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.group_arrays import (
    GROUP_LENGTHS,
    GROUP_TENSORS,
    Arrays,
    group_arrays,
    groups_of,
)
from alignment_trainer.process.errors import WireError, describe

MAX_HEADER_BYTES = 16 * 1024
"""Of a body: some ten tensors, and a few words about them."""
MAX_SEQUENCES = 2**16
"""Prompts or completions of one body: 64 groups of the most completions that a prompt may have."""
MAX_TOKENS = 2**23
"""Of one body, in prompts and in completions; as Python's integers they take 300 MB each."""
LOGPROBS_PATH, SCORES_PATH = "/v1/logprobs", "/v1/scores"
FINGERPRINT, COMPONENTS = "model_fingerprint", "components"
Float32 = NDArray[np.float32]
Groups = Sequence[PromptGroup]


@dataclass(frozen=True)
class GroupsRequest:
    """Prompts with the completions to score. fingerprint: of the model that shall; empty for any."""

    fingerprint: str
    groups: tuple[PromptGroup, ...]


def encode_request(request: GroupsRequest) -> bytes:
    return save(group_arrays(request.groups), metadata={FINGERPRINT: request.fingerprint})


def decode_request(body: bytes, vocabulary: int) -> GroupsRequest:
    """Raises WireError that names the tensor, what was found and what belongs there."""
    arrays, metadata = load_body(body)
    return GroupsRequest(metadata.get(FINGERPRINT, ""), groups_from(arrays, vocabulary))


def groups_from(arrays: Arrays, vocabulary: int) -> tuple[PromptGroup, ...]:
    """The prompt groups among the arrays of a body. Raises WireError."""
    for name in GROUP_TENSORS:
        if name not in arrays:
            raise WireError(f"no tensor `{name}`; found {sorted(arrays)}; send {', '.join(GROUP_TENSORS)} as int32")
        if arrays[name].dtype != np.int32 or arrays[name].ndim != 1:
            raise WireError(f"`{name}` is {arrays[name].dtype} {arrays[name].shape}; send it flat, as int32")
    for name in GROUP_LENGTHS:
        if not len(arrays[name]) or arrays[name].min() < 1:
            raise WireError(f"`{name}` is empty or has a length below 1; every prompt and completion needs a token")
        if len(arrays[name]) > MAX_SEQUENCES:
            raise WireError(f"`{name}` has {len(arrays[name])} entries, more than {MAX_SEQUENCES}; send fewer rows")
    for tokens in ("prompt_tokens", "completion_tokens"):
        if len(arrays[tokens]) > MAX_TOKENS:
            raise WireError(f"`{tokens}` has {len(arrays[tokens])} tokens, more than {MAX_TOKENS}; send fewer rows")
        if len(arrays[tokens]) and not 0 <= arrays[tokens].min() <= arrays[tokens].max() < vocabulary:
            raise WireError(f"`{tokens}` holds ids outside 0..{vocabulary - 1}; tokenize with this model's tokenizer")
    return groups_of(arrays)


@dataclass(frozen=True)
class AnswerFormat:
    """What one kind of server answers. decode: to an array whose last axis runs over the numbers of all groups.

    numbers: how many of them are a group's. decode raises WireError.
    """

    path: str
    decode: Callable[[bytes, Groups], Float32]
    numbers: Callable[[PromptGroup], int]


def encode_logprobs(fingerprint: str, logprobs: Float32) -> bytes:
    """logprobs: flat, one for each completion token of the request, in nats."""
    return save({"logprobs": logprobs}, metadata={FINGERPRINT: fingerprint})


def decode_logprobs(body: bytes, groups: Groups) -> Float32:
    """The log-probs of all completion tokens, (tokens,). Raises WireError."""
    arrays, _ = load_body(body)
    logprobs, tokens = arrays.get("logprobs"), sum(group.completion_tokens for group in groups)
    if logprobs is None or logprobs.dtype != np.float32 or logprobs.shape != (tokens,):
        raise WireError(f"an answer without {tokens} float32 `logprobs`; found {sorted(arrays)}")
    result: Float32 = logprobs
    return result


LOGPROBS = AnswerFormat(LOGPROBS_PATH, decode_logprobs, lambda group: group.completion_tokens)


def encode_scores(fingerprint: str, components: Sequence[str], scores: Float32) -> bytes:
    """scores: (models, completions) in the order of the request. components: the reward's name of each model."""
    return save({"scores": scores}, metadata={FINGERPRINT: fingerprint, COMPONENTS: json.dumps(list(components))})


def scores_format(decode: Callable[[bytes, Groups], Float32]) -> AnswerFormat:
    """Of reward servers: one score for each model and completion."""
    return AnswerFormat(SCORES_PATH, decode, lambda group: len(group.completions))


def split_by_group(values: Float32, numbers: Sequence[int]) -> list[Float32]:
    """The values of each group, which has so many numbers along the last axis."""
    return np.split(values, list(accumulate(numbers))[:-1], axis=-1)


def load_body(body: bytes) -> tuple[Arrays, dict[str, str]]:
    """The arrays and the metadata of a body. Raises WireError."""
    length = int.from_bytes(body[:8], "little")
    if length > MAX_HEADER_BYTES:
        raise WireError(
            f"not safetensors ({len(body)} bytes): a header of {length} bytes, more than {MAX_HEADER_BYTES}"
        )
    try:
        arrays = load(body)
        return arrays, json.loads(body[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError) as error:
        raise WireError(f"not safetensors ({len(body)} bytes): {describe(error)}") from error
