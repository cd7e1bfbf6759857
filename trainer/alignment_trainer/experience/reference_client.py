"""The reference's log-probs, asked of servers that come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from alignment_trainer.data.packing import PromptGroup
from alignment_trainer.data.reference import Float32, Shard
from alignment_trainer.model.frozen_model import sum_completions
from alignment_trainer.serving.pool import Task
from alignment_trainer.serving.wire import LOGPROBS_PATH, LogprobsRequest, decode_answer, encode_request


def shard_task(request: Callable[[Shard], LogprobsRequest], accept: Callable[[Shard, Float32], None]) -> Task[Shard]:
    """Shards of prepared rows; `accept` takes a shard's sums, (rows, 2)."""

    def take(shard: Shard, body: bytes) -> None:
        groups = [group for batch in request(shard).batches for group in batch]
        accept(shard, _sums(groups, decode_answer(body, _completion_tokens(groups))))

    return Task("log-probs", LOGPROBS_PATH, lambda shard: encode_request(request(shard)), take, lambda s: s.name)


def _completion_tokens(groups: Sequence[PromptGroup]) -> int:
    return sum(len(completion) for group in groups for completion in group.completions)


def _sums(groups: Sequence[PromptGroup], logprobs: NDArray[np.float32]) -> Float32:
    """(pairs, 2) sums of the flat log-probs of all completion tokens."""
    ends = np.cumsum([sum(map(len, group.completions)) for group in groups])
    parts = np.split(logprobs, ends[:-1])
    return np.stack([sum_completions(group, part) for group, part in zip(groups, parts, strict=True)])
