"""How a life ended, and whether a process may still run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from alignment_api.contract.roles import ROLES
from alignment_operator.plan.failure_policy import POLICIES, Kind, Policy, cause_of
from alignment_operator.plan.types import PodView

GIVEN_UP_AFTER = timedelta(seconds=60)
"""Beyond its grace period, a process that nothing kills (a hung driver, a node whose runtime is down) holds its
successor back for no longer: storage fences what it still writes."""


@dataclass(frozen=True)
class Termination:
    """One life's end."""

    kind: Kind
    reason: str
    """CamelCase word."""
    message: str
    """What happened and what to do."""
    node: str = ""
    """Where."""

    @property
    def policy(self) -> Policy:
        """What follows from it."""
        return POLICIES[self.kind]

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.reason}: {self.message}"


SUCCESS = Termination("success", "Succeeded", "")
LOST_LATE = Termination("disruption", "NodeLost", "a pod of the gang was lost, which its peers noticed first")
VANISHED = Termination("disruption", "Vanished", "its pod is gone from the API")
ENDED_EARLY = Termination("own", "EndedEarly", "it ended well although its stage still runs")


def termination_of(pod: PodView) -> Termination | None:
    """How this life ended; None while it goes on.

    A pod that is being deleted has ended for the plan: its process is told to go, and nobody wants it back (a
    DisruptionTarget alone proves nothing yet: an eviction may be given up). An unreachable node ends at once what
    does not write; what writes to storage is given until its tolerations run out, since a restart costs more than a
    hiccup of the network.
    """
    if pod.ended:
        return _ended(pod)
    if pod.gone_by is not None or (pod.node_lost and not ROLES[pod.role].writes):
        reason = "NodeLost" if pod.node_lost else "Evicted"
        return Termination("disruption", reason, pod.message or "it is being deleted", pod.node)
    return None


def is_alive(pod: PodView, now: datetime) -> bool:
    """Whether its process may still do harm.

    A gang's pod on a lost node is out of the way as soon as the control plane gives it up: nobody can tell it to go,
    and the next attempt's claim fences it. Any other is given its grace period, and what outlives that is given up.
    """
    if pod.ended:
        return False
    if pod.gone_by is None:
        return True
    if pod.node_lost:
        return not ROLES[pod.role].trainable and now < pod.gone_by
    return now < given_up_at(pod.gone_by)


def given_up_at(gone_by: datetime) -> datetime:
    """When a process that should have gone by then is not waited for any more."""
    return gone_by + GIVEN_UP_AFTER


def _ended(pod: PodView) -> Termination:
    outcome = pod.outcome
    if pod.phase == "Succeeded" and (pod.index > 0 or (outcome is not None and outcome.result == "succeeded")):
        return SUCCESS  # the first of a gang speaks for all
    cause = cause_of(pod)
    failure = outcome.failure if outcome is not None else None
    if failure is not None and cause.kind in ("mistake", "failure", "secondary", "waiting"):
        reason, said = failure.reason, failure.message
    elif POLICIES[cause.kind].end == "lost":
        asked = outcome is not None and outcome.result == "interrupted"
        default = "it was asked to go" if asked else "lost through its node or the control plane"
        reason, said = pod.reason or "Interrupted", pod.message or default
    else:
        reason, said = pod.reason or "Error", pod.message or f"exit code {pod.exit_code}, no word of what went wrong"
    return Termination(cause.kind, reason, cause.message.format(role=pod.role, message=said), pod.node)
