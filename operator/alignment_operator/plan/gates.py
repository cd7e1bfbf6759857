"""Pods of a stage are created together; some may not be scheduled before others are ready."""

from __future__ import annotations

from collections.abc import Iterable

from alignment_api.roles import Stage
from alignment_operator.plan.ledger import Ledger, pod_of
from alignment_operator.plan.types import PodView


def must_wait(stage: Stage, role: str, ledger: Ledger, pods: Iterable[PodView]) -> bool:
    """Whether a role that this one needs is not ready."""
    return any(not is_ready(needed, ledger, pods) for needed in stage.waits.get(role, ()))


def is_ready(role: str, ledger: Ledger, pods: Iterable[PodView]) -> bool:
    """Whether every open life of the role has a ready pod, and there is one."""
    lines = [line for line in ledger.lines.values() if line.role == role and line.end is None]
    found = [pod_of(line, pods) for line in lines]
    return bool(found) and all(pod is not None and pod.ready for pod in found)


def gates_to_open(stage: Stage, ledger: Ledger, pods: Iterable[PodView]) -> tuple[str, ...]:
    """Names of gated pods that may be scheduled now. A gate that was opened is never closed again."""
    pods = tuple(pods)
    wanted = [pod_of(line, pods) for line in ledger.lines.values() if line.end is None]
    return tuple(
        pod.name for pod in wanted if pod is not None and pod.gated and not must_wait(stage, pod.role, ledger, pods)
    )
