"""The client of frozen models: what reference and reward servers say of prompt groups, whoever asks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.microbatches import cut_by_tokens
from alignment_trainer.process.errors import WireError
from alignment_trainer.serving.pool import PoolOptions, ServerGroup, ServerPool
from alignment_trainer.serving.wire import AnswerFormat, Float32, GroupsRequest, encode_request, split_by_group
from alignment_trainer.serving.work import Task

STALLED_AFTER = 1800.0
"""Seconds without an answer from any server: a lost spot pool is back by then, or the attempt ends and waits gated,
without its on-demand nodes."""


@dataclass(frozen=True)
class GroupsToScore:
    """Prompt groups, made when they are asked for. lengths: tokens of each once it is packed.

    group: by its place. name: by its place, in words, for messages.
    """

    lengths: Sequence[int]
    group: Callable[[int], PromptGroup]
    name: Callable[[int], str]

    @classmethod
    def of(cls, groups: Sequence[PromptGroup], name: str = "prompt") -> GroupsToScore:
        """Those of a list; they are called `prompt 1`, `prompt 2`, ..."""
        return cls([group.length for group in groups], groups.__getitem__, lambda place: f"{name} {place + 1}")


@dataclass(frozen=True)
class FrozenClient:
    """Asks the servers of one role.

    answers: what they answer with. fingerprint: of their model; empty for any. request_tokens: of one request, what a
    server computes at once (training.microBatchTokens). options: of the pool of servers.
    """

    servers: ServerGroup
    answers: AnswerFormat
    fingerprint: str
    request_tokens: int
    options: PoolOptions = field(default_factory=lambda: PoolOptions(stalled_after=STALLED_AFTER, leave_within=1.0))

    def ask(self, groups: Sequence[PromptGroup], stop: Callable[[], bool]) -> Float32 | None:
        """What they say of all groups, in their order; None where `stop` ended it. Raises as `ServerPool.run` does."""
        found: dict[int, Float32] = {}

        def keep(places: range, values: list[Float32]) -> None:
            found.update(zip(places, values, strict=True))

        if not self.ask_each(GroupsToScore.of(groups), keep, stop):
            return None
        return np.concatenate([found[place] for place in range(len(groups))], axis=-1)

    def ask_each(
        self, work: GroupsToScore, accept: Callable[[range, list[Float32]], None], stop: Callable[[], bool]
    ) -> bool:
        """Calls `accept` with some places and what is said of the group at each, as answers come, until all are there.

        False where `stop` ended it. Raises as `ServerPool.run` does.
        """
        chunks = cut_by_tokens(work.lengths, self.request_tokens)

        def take(index: int, body: bytes) -> None:
            accept(chunks[index], self._read(work, chunks[index], body))

        task = Task(
            phase=f"answers of role {self.servers.role}",
            path=self.answers.path,
            encode=lambda index: encode_request(GroupsRequest(self.fingerprint, tuple(map(work.group, chunks[index])))),
            accept=take,
            name=lambda index: f"{work.name(chunks[index][0])} to {work.name(chunks[index][-1])}",
        )
        return ServerPool(task, self.servers, self.options).run(range(len(chunks)), stop).finished

    def _read(self, work: GroupsToScore, places: range, body: bytes) -> list[Float32]:
        """Raises WireError, which names the row, for what is not finite: it would end in every weight."""
        groups = [work.group(place) for place in places]
        values = split_by_group(self.answers.decode(body, groups), [self.answers.numbers(group) for group in groups])
        for place, numbers in zip(places, values, strict=True):
            if not np.isfinite(numbers).all():
                worst = numbers[~np.isfinite(numbers)][0]
                raise WireError(
                    f"{work.name(place)}: an answer that is not finite ({worst}): the model overflows on it, or its "
                    "weights are damaged; try spec.training.precision: fp32, or take the row out of the data"
                )
        return values
