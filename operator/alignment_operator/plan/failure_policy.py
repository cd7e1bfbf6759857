"""What an end means, as one table: whose fault it is, which budget pays, whether the next life waits and moves away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from alignment_operator.plan.types import PodView

Kind = Literal["success", "mistake", "failure", "own", "secondary", "waiting", "disruption", "pressure", "rejection"]
"""mistake: the user's; no other life would fare better. failure: an error that may pass. own: one that no loss of a
peer explains. secondary: tells of the end of another process. waiting: what it needs was not there. disruption: lost
through node or control plane. pressure: put out by a node whose disk was full. rejection: turned away on arrival."""

AVOIDED_FOR = timedelta(minutes=10)
"""How long a job keeps away from a node that has turned a pod away: what ails a node takes minutes to be noticed."""
OUT_OF_MEMORY = "OOMKilled"
SECONDARY = frozenset({"RanksLost", "CriticLost", "DistStoreError"})
"""Reasons of a Failure that tell of the end of another process of the gang."""
WAITING = frozenset({"PhaseStalled", "RendezvousTimeoutError"})
"""Reasons of a Failure that tell of something that did not come: servers, peers."""
DISK = "ephemeral-storage"
"""In the message of an eviction for want of disk."""


@dataclass(frozen=True)
class Policy:
    """What follows from a kind of end."""

    end: Literal["succeeded", "failed", "lost"]
    budget: Literal["failures", "disruptions"] | None
    """The field of spec.budgets that pays; None: nothing does."""
    rank: int
    """Of several ends of a gang the lowest is the one that counts."""
    backs_off: bool = False
    """The next life waits, twice as long after each further one."""
    avoids_node: bool = False
    """New pods of the job keep away from its node for a while."""
    may_be_an_echo: bool = False
    """A peer's node that turns out to be lost explains it: then it is that peer's disruption."""


POLICIES: dict[Kind, Policy] = {
    "rejection": Policy("lost", None, 0, backs_off=True, avoids_node=True),
    "pressure": Policy("lost", "disruptions", 0, backs_off=True),
    "disruption": Policy("lost", "disruptions", 0),
    "mistake": Policy("failed", "failures", 1),
    "own": Policy("failed", "failures", 2, backs_off=True),
    "waiting": Policy("lost", None, 3, backs_off=True),
    "failure": Policy("failed", "failures", 4, backs_off=True, may_be_an_echo=True),
    "secondary": Policy("failed", "failures", 5, backs_off=True, may_be_an_echo=True),
    "success": Policy("succeeded", None, 6),
}


@dataclass(frozen=True)
class Cause:
    """A row of the table: what ended pods look like, and the kind of their end. The first row that applies counts."""

    applies: Callable[[PodView], bool]
    kind: Kind
    message: str = "{message}"
    """For people; {role} and {message} (the process's word, else the pod's) are filled in."""


CAUSES: tuple[Cause, ...] = (
    Cause(lambda pod: _failure(pod) is not None and not _retryable(pod), "mistake"),
    Cause(lambda pod: pod.rejected, "rejection", "its node turned it away: {message}"),
    Cause(
        lambda pod: pod.disrupted and DISK in (pod.message or ""),
        "pressure",
        "{message}; raise spec.roles.{role}.ephemeralStorage",
    ),
    Cause(lambda pod: pod.disrupted or pod.node_lost or pod.gone_by is not None, "disruption"),
    Cause(lambda pod: pod.outcome is not None and pod.outcome.result == "interrupted", "disruption"),
    Cause(lambda pod: pod.reason == OUT_OF_MEMORY, "own", "killed for want of memory; raise spec.roles.{role}.memory"),
    Cause(lambda pod: _failure(pod) in WAITING, "waiting"),
    Cause(lambda pod: _failure(pod) in SECONDARY, "secondary"),
    Cause(lambda pod: True, "failure"),
)


def cause_of(pod: PodView) -> Cause:
    """The row for a pod that has ended, and not well."""
    return next(cause for cause in CAUSES if cause.applies(pod))


def _failure(pod: PodView) -> str | None:
    """The reason that the process itself gave for its failure."""
    failure = pod.outcome.failure if pod.outcome is not None else None
    return failure.reason if failure is not None else None


def _retryable(pod: PodView) -> bool:
    failure = pod.outcome.failure if pod.outcome is not None else None
    return failure is None or failure.retryable
