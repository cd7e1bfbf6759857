"""What frozen servers (reference, reward models) say of prompt groups, asked in chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alignment_trainer.data.packing import PromptGroup
from alignment_trainer.serving.peers import Peers
from alignment_trainer.serving.pool import PoolOptions, ServerPool, Task
from alignment_trainer.serving.wire import LogprobsRequest, encode_request

CHUNK_TOKENS = 16_384
"""Of one request: enough to keep a server busy for a while, little enough to lose."""
STALLED_AFTER = 1800.0
"""Seconds without an answer from any server: a lost spot pool is back by then, or the attempt ends and waits gated,
without its on-demand nodes."""
Float32 = NDArray[np.float32]
Chunk = tuple[PromptGroup, ...]


@dataclass(frozen=True)
class FrozenServers:
    """The servers of one role. decode: an answer to a chunk as an array with its completions' (or tokens') last."""

    role: str
    path: str
    fingerprint: str
    decode: Callable[[bytes, Chunk], Float32]
    peers: Peers
    token: str
    servers: Callable[[int], None]

    def ask(self, groups: Sequence[PromptGroup], stop: Callable[[], bool]) -> Float32 | None:
        """What they say of all groups, in their order; None where `stop` ended it. Raises as `ServerPool.run` does."""
        chunks = cut(groups)
        answers: dict[int, Float32] = {}

        def accept(index: int, body: bytes) -> None:
            answers[index] = self.decode(body, chunks[index])

        task = Task(
            phase=f"answers of role {self.role}",
            path=self.path,
            encode=lambda index: encode_request(LogprobsRequest(self.fingerprint, 1, (chunks[index],))),
            accept=accept,
            name=lambda index: f"chunk {index + 1} of {len(chunks)}",
        )
        options = PoolOptions(stalled_after=STALLED_AFTER, leave_within=1.0)
        pool = ServerPool(task, self.peers, self.token, self.servers, options)
        if not pool.run(range(len(chunks)), stop):
            return None
        return np.concatenate([answers[index] for index in range(len(chunks))], axis=-1)


def cut(groups: Sequence[PromptGroup], tokens: int = CHUNK_TOKENS) -> list[Chunk]:
    """Consecutive groups in chunks of at most so many tokens, one group at least."""
    chunks: list[list[PromptGroup]] = []
    left = 0
    for group in groups:
        if chunks and group.length <= left:
            chunks[-1].append(group)
            left -= group.length
        else:
            chunks.append([group])
            left = tokens - group.length
    return [tuple(chunk) for chunk in chunks]
