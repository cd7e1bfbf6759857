"""Pods of a stage are created together; some may not be scheduled before others are ready."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from alignment_api.contract.roles import Stage
from alignment_operator.plan.ledger import Ledger, pod_of
from alignment_operator.plan.types import PodView

PATIENCE = timedelta(minutes=5)
"""How long a pod waits for all pods of a role that it needs; after that one is enough. Servers join at any time, and
where spot nodes are short the last of them may be hours away."""


def must_wait(stage: Stage, role: str, ledger: Ledger, pods: Iterable[PodView], patient: bool = True) -> bool:
    """Whether a role that this one needs is not ready. patient: it must be ready with all of its pods."""
    return any(not is_ready(needed, ledger, pods, patient) for needed in stage.waits.get(role, ()))


def is_ready(role: str, ledger: Ledger, pods: Iterable[PodView], whole: bool = True) -> bool:
    """Whether every open life of the role (or, not `whole`, one of them) has a ready pod."""
    lines = [line for line in ledger.lines.values() if line.role == role and line.end is None]
    ready = [pod is not None and pod.ready for pod in (pod_of(line, pods) for line in lines)]
    return any(ready) and (all(ready) or not whole)


def gates_to_open(stage: Stage, ledger: Ledger, pods: Iterable[PodView], now: datetime) -> tuple[str, ...]:
    """Names of gated pods that may be scheduled now. A gate that was opened is never closed again."""
    pods = tuple(pods)
    wanted = [pod_of(line, pods) for line in ledger.lines.values() if line.end is None]
    return tuple(
        pod.name
        for pod in wanted
        if pod is not None
        and pod.gated
        and not must_wait(stage, pod.role, ledger, pods, patient=now < pod.created_at + PATIENCE)
    )
