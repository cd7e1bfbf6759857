"""Pods of a stage are created together; some may not be scheduled before the roles that they need are ready."""

from __future__ import annotations

from datetime import datetime, timedelta

from alignment_operator.plan.layout import StageLayout
from alignment_operator.plan.pods import Pods
from alignment_operator.plan.records import Records

PATIENCE = timedelta(minutes=5)
"""How long a pod waits for all pods of a role that it needs; after that one is enough. Servers join at any time, and
where spot nodes are short the last of them may be hours away."""


class Readiness:
    """Which roles of a stage are ready: with one of their open lives, or with all of them."""

    def __init__(self, stage: StageLayout, records: Records, pods: Pods) -> None:
        self._needs = stage.stage.waits
        ready: dict[str, list[bool]] = {role: [] for role in stage.roles}
        for record in records.open():
            pod = pods.of(record)
            if record.role in ready:
                ready[record.role].append(pod is not None and pod.ready)
        self._in_part = {role for role, lives in ready.items() if any(lives)}
        self._whole = {role for role, lives in ready.items() if any(lives) and all(lives)}

    def must_wait(self, role: str, patient: bool = True) -> bool:
        """Whether a role that this one needs is not ready. patient: it must be ready with all of its pods."""
        ready = self._whole if patient else self._in_part
        return not ready.issuperset(self._needs.get(role, ()))


def gates_to_open(stage: StageLayout, records: Records, pods: Pods, now: datetime) -> tuple[str, ...]:
    """Names of gated pods that may be scheduled now. A gate that was opened is never closed again."""
    readiness = Readiness(stage, records, pods)
    wanted = (pods.of(record) for record in records.open())
    return tuple(
        pod.name
        for pod in wanted
        if pod is not None and pod.gated and not readiness.must_wait(pod.role, patient=now < pod.created_at + PATIENCE)
    )
