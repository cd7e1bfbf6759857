"""How a pod's life ended: well, by an error, or by a disruption."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from alignment_api.contract.roles import ROLES
from alignment_operator.plan.types import PodView

OUT_OF_MEMORY = "OOMKilled"
HEARSAY = frozenset({"RanksLost", "CriticLost"})
"""Reasons of a Failure that tell of the end of another process of the gang."""


@dataclass(frozen=True)
class Fate:
    """One life's end."""

    end: Literal["succeeded", "failed", "lost"]
    reason: str
    """CamelCase word."""
    message: str
    """What happened and what to do."""
    final: bool = False
    """A user's mistake: no other life would fare better."""

    @property
    def is_hearsay(self) -> bool:
        """It tells of another process that has gone, whose own word is worth more."""
        return self.reason in HEARSAY


LOST_LATE = Fate("lost", "NodeLost", "a pod of the gang was lost, which its peers noticed first")
VANISHED = Fate("lost", "Vanished", "its pod is gone from the API")


def fate_of(pod: PodView) -> Fate | None:
    """How this life ended; None while it goes on.

    A pod that is being deleted has ended for the plan: its process is told to go, and nobody wants it back (a
    DisruptionTarget alone proves nothing yet: an eviction may be given up). An unreachable node ends at once what
    does not write; what writes to storage is given until its tolerations run out, since a restart costs more than a
    hiccup of the network.
    """
    if pod.ended:
        return _ended(pod)
    if pod.gone_by is not None or (pod.node_lost and not ROLES[pod.role].writes):
        return Fate("lost", "NodeLost" if pod.node_lost else "Evicted", _words(pod, "it is being deleted"))
    return None


def is_alive(pod: PodView, now: datetime) -> bool:
    """Whether its process may still run: it has not ended, and no lost node has outlived its grace period."""
    abandoned = pod.node_lost and pod.gone_by is not None and pod.gone_by <= now
    return not pod.ended and not abandoned


def _ended(pod: PodView) -> Fate:
    outcome = pod.outcome
    if pod.phase == "Succeeded" and (pod.index > 0 or (outcome is not None and outcome.result == "succeeded")):
        return Fate("succeeded", "Succeeded", "")  # the first of a gang speaks for all
    failure = outcome.failure if outcome is not None else None
    if failure is not None and not failure.retryable:
        return Fate("failed", failure.reason, failure.message, final=True)
    interrupted = outcome is not None and outcome.result == "interrupted"
    if pod.disrupted or pod.node_lost or pod.gone_by is not None or interrupted:
        return Fate("lost", pod.reason or "Interrupted", _words(pod, "it was asked to go"))
    if pod.reason == OUT_OF_MEMORY:
        return Fate("failed", OUT_OF_MEMORY, f"killed for want of memory; raise spec.roles.{pod.role}.memory")
    if failure is not None:
        return Fate("failed", failure.reason, failure.message)
    return Fate("failed", pod.reason or "Error", _words(pod, f"exit code {pod.exit_code}, no word of what went wrong"))


def _words(pod: PodView, default: str) -> str:
    return pod.message or default
