"""What servers are asked, and which of it is waiting, held by a server, done or given up."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Item = TypeVar("Item", bound=Hashable)


class AnswerRefused(RuntimeError):
    """Servers answer an item, and nothing that they say of it can be used."""


@dataclass(frozen=True)
class Task(Generic[Item]):
    """What the servers of a role are asked. The callbacks are called from the thread that calls `ServerPool.run`.

    phase: in words, for messages: `log-probs`, `completions by weights 17`. path: of the request, a POST.
    encode: an item's body. accept: takes the answer to an item; raises WireError for one that is not what it should be.
    name: an item in words.
    """

    phase: str
    path: str
    encode: Callable[[Item], bytes]
    accept: Callable[[Item, bytes], None]
    name: Callable[[Item], str] = str


@dataclass(frozen=True)
class ItemLimits:
    """servers_lost: over one item, before it is dropped; None for any number. wrong_answers: to one item, before
    AnswerRefused ends the work: a server may be faulty, three answers say that it is the model or the row. None where
    they count as lost servers alone."""

    servers_lost: int | None = None
    wrong_answers: int | None = 3


class WorkQueue(Generic[Item]):
    """Every item is waiting, held by a server, done or dropped.

    reissued: how often an item's server was lost, so that another one got it. dropped: with the reason.
    """

    def __init__(self, items: Sequence[Item], name: Callable[[Item], str], limits: ItemLimits) -> None:
        self._waiting, self._name, self._limits = deque(items), name, limits
        self._lost, self._wrong = Counter[Item](), Counter[Item]()
        self.left, self.held, self.reissued = len(items), 0, 0
        self.dropped: dict[Item, str] = {}

    def take(self) -> Item | None:
        """An item for a server to hold; None while none is waiting."""
        if not self._waiting:
            return None
        self.held += 1
        return self._waiting.popleft()

    def finish(self) -> None:
        """A held item is done."""
        self.held -= 1
        self.left -= 1

    def put_back(self, item: Item) -> None:
        """A held item waits again, before all others; its server is as good as before."""
        self.held -= 1
        self._waiting.appendleft(item)

    def lose(self, item: Item, reason: str) -> None:
        """The server that held an item was lost: the item waits again, or is dropped."""
        self.reissued += 1
        self._lost[item] += 1
        self.put_back(item)
        if self._limits.servers_lost is not None and self._lost[item] >= self._limits.servers_lost:
            self._waiting.popleft()
            self.left -= 1
            self.dropped[item] = f"{self._lost[item]} servers were lost over it; the last: {reason}"
            log.warning("%s is dropped: %s", self._name(item), self.dropped[item])

    def count_wrong_answer(self, item: Item, problem: str) -> None:
        """An answer could not be used. Raises AnswerRefused where that is the last one to be borne."""
        self._wrong[item] += 1
        if self._limits.wrong_answers is not None and self._wrong[item] >= self._limits.wrong_answers:
            raise AnswerRefused(f"{problem}; {self._wrong[item]} answers to {self._name(item)} were of no use")
