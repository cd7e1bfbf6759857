"""What the apiserver refuses of one job's objects: said until it is over, and tried again ever more slowly."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta

from alignment_operator.kube.client import UNAVAILABLE, ApiError
from alignment_operator.plan.types import Refusal

FIRST_BACKOFF_SECONDS = 2.0
LONGEST_BACKOFF_SECONDS = 120.0
"""A quota that was raised is noticed within two minutes."""
REQUEST_SECONDS = 5.0
"""For how long one request is tried again within a pass: what does not pass by then waits beside it."""
TOLD_SOON = timedelta(milliseconds=200)
"""Until the pass that writes a new refusal, or its end, into the status."""
REASONS = (("exceeded quota", "QuotaExceeded"), ("admission webhook", "WebhookDenied"))
"""Words of a refusal -> its reason, where the apiserver's own (Forbidden, Invalid, ...) says less."""
NO_ANSWER = "the apiserver does not answer: {error!r}"


@dataclass(frozen=True)
class _Standing:
    refusal: Refusal
    tries: int
    until: float
    """Loop time before which it is not tried again."""


class Refusals:
    """Those of one job. What is refused stops nothing else; an object that is not wanted any more is forgotten."""

    def __init__(self) -> None:
        self._standing: dict[str, _Standing] = {}
        self._wanted: set[str] = set()
        self._told: tuple[Refusal, ...] | None = None
        self._tried = False

    def tell(self) -> tuple[Refusal, ...] | None:
        """What stands refused; None before anything was tried."""
        self._told = self.standing if self._tried else None
        return self._told

    @property
    def standing(self) -> tuple[Refusal, ...]:
        """What stands refused, in an order that does not change."""
        return tuple(entry.refusal for _, entry in sorted(self._standing.items()))

    async def attempt(self, what: str, request: Callable[[], Awaitable[None]]) -> bool:
        """Whether it is done; False where it is refused, now or a moment ago. Raises what is no refusal."""
        self._wanted.add(what)
        clock, before = asyncio.get_running_loop().time, self._standing.get(what)
        if before is not None and clock() < before.until:
            return False
        try:
            await request()
        except UNAVAILABLE as error:
            tries = before.tries + 1 if before is not None else 1
            pause = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** (tries - 1))
            self._standing[what] = _Standing(Refusal(what, _reason(error), _words(error)), tries, clock() + pause)
            return False
        self._standing.pop(what, None)
        return True

    def settle(self) -> None:
        """Everything that is wanted has been tried: what is wanted no more is forgotten."""
        self._standing = {what: entry for what, entry in self._standing.items() if what in self._wanted}
        self._wanted, self._tried = set(), True

    def pause(self) -> timedelta | None:
        """When to look again because of what was refused; None where nothing asks for it."""
        if self.standing != (self._told or ()):
            return TOLD_SOON
        return timedelta(seconds=self.retry_seconds(0.0)) if self._standing else None

    def retry_seconds(self, otherwise: float) -> float:
        """Seconds until the first of what is refused may be tried again; where nothing is, `otherwise`."""
        if not self._standing:
            return otherwise
        soonest = min(entry.until for entry in self._standing.values())
        return max(0.0, soonest - asyncio.get_running_loop().time())


def _reason(error: Exception) -> str:
    if not isinstance(error, ApiError):
        return "Unavailable"
    own = re.sub(r"[^A-Za-z0-9]", "", error.reason) or "Refused"
    return next((reason for words, reason in REASONS if words in error.message), own)


def _words(error: Exception) -> str:
    return error.message if isinstance(error, ApiError) else NO_ANSWER.format(error=error)
