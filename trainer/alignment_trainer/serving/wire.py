"""What `POST /v1/logprobs` and `POST /v1/scores` carry: safetensors in, safetensors out (docs/architecture.md)."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from alignment_trainer.data.group_arrays import (
    GROUP_LENGTHS,
    GROUP_TENSORS,
    Arrays,
    WireError,
    cut_by,
    group_arrays,
    groups_of,
    int32_array,
)
from alignment_trainer.data.packing import PromptGroup

LOGPROBS_PATH, SCORES_PATH = "/v1/logprobs", "/v1/scores"
FINGERPRINT, RANKS, COMPONENTS = "model_fingerprint", "ranks", "components"
_LENGTHS = (*GROUP_LENGTHS, "batch_lengths")
_TENSORS = (*GROUP_TENSORS, "batch_lengths")
Batches = tuple[tuple[PromptGroup, ...], ...]


@dataclass(frozen=True)
class LogprobsRequest:
    """Rows to score, batch by batch. ranks: of the training whose micro-batches the server repeats."""

    fingerprint: str
    ranks: int
    batches: Batches


def encode_request(request: LogprobsRequest) -> bytes:
    groups = [group for batch in request.batches for group in batch]
    arrays = group_arrays(groups) | {"batch_lengths": int32_array([len(batch) for batch in request.batches])}
    return save(arrays, metadata={FINGERPRINT: request.fingerprint, RANKS: str(request.ranks)})


def decode_request(body: bytes, vocabulary: int) -> LogprobsRequest:
    """Raises WireError that names the tensor, what was found and what belongs there."""
    arrays, metadata = load_body(body)
    for name in _TENSORS:
        if name not in arrays:
            raise WireError(f"no tensor `{name}`; found {sorted(arrays)}; send {', '.join(_TENSORS)} as int32")
        if arrays[name].dtype != np.int32 or arrays[name].ndim != 1:
            raise WireError(f"`{name}` is {arrays[name].dtype} {arrays[name].shape}; send it flat, as int32")
    for name in _LENGTHS:
        if not len(arrays[name]) or arrays[name].min() < 1:
            raise WireError(f"`{name}` is empty or has a length below 1; every prompt and completion needs a token")
    for tokens in ("prompt_tokens", "completion_tokens"):
        if len(arrays[tokens]) and not 0 <= arrays[tokens].min() <= arrays[tokens].max() < vocabulary:
            raise WireError(f"`{tokens}` holds ids outside 0..{vocabulary - 1}; tokenize with this model's tokenizer")
    if not metadata.get(RANKS, "1").isdecimal() or int(metadata.get(RANKS, "1")) < 1:
        raise WireError(f"metadata `{RANKS}` is `{metadata[RANKS]}`; send the training's ranks, 1 or more")
    return LogprobsRequest(metadata.get(FINGERPRINT, ""), int(metadata.get(RANKS, "1")), _batches(arrays))


def encode_answer(fingerprint: str, logprobs: NDArray[np.float32]) -> bytes:
    """logprobs: flat, one for each completion token of the request, in nats."""
    return save({"logprobs": logprobs}, metadata={FINGERPRINT: fingerprint})


def decode_answer(body: bytes, tokens: int) -> NDArray[np.float32]:
    """The log-probs of so many completion tokens. Raises WireError."""
    arrays, _ = load_body(body)
    logprobs = arrays.get("logprobs")
    if logprobs is None or logprobs.dtype != np.float32 or logprobs.shape != (tokens,):
        raise WireError(f"an answer without {tokens} float32 `logprobs`; found {sorted(arrays)}")
    result: NDArray[np.float32] = logprobs
    return result


def encode_scores(fingerprint: str, components: Sequence[str], scores: NDArray[np.float32]) -> bytes:
    """scores: (models, completions) in the order of the request. components: the reward's name of each model."""
    return save({"scores": scores}, metadata={FINGERPRINT: fingerprint, COMPONENTS: json.dumps(list(components))})


def _batches(arrays: Arrays) -> Batches:
    lengths = arrays["batch_lengths"].tolist()
    return tuple(tuple(batch) for batch in cut_by(groups_of(arrays), lengths, "prompt_lengths"))


def load_body(body: bytes) -> tuple[Arrays, dict[str, str]]:
    """The arrays and the metadata of a body. Raises WireError."""
    try:
        arrays = load(body)
        length = struct.unpack("<Q", body[:8])[0]
        return arrays, json.loads(body[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, KeyError) as error:
        raise WireError(f"not safetensors ({len(body)} bytes): {error}") from error
