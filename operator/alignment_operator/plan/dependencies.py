"""Pods of a stage are created together; some may not be scheduled before the roles that they need are ready."""

from __future__ import annotations

from datetime import timedelta

from alignment_operator.plan.layout import StageLayout
from alignment_operator.plan.pods import Pods
from alignment_operator.plan.records import Records
from alignment_operator.plan.snapshot import Snapshot

PATIENCE = timedelta(minutes=5)
"""How long a pod waits for all pods of a role that it needs; after that one is enough. Servers join at any time, and
where spot nodes are short the last of them may be hours away."""


class Readiness:
    """Which roles of a stage are ready: with one of their pods, or with all of them."""

    def __init__(self, stage: StageLayout, records: Records, pods: Pods) -> None:
        self._needs = stage.stage.waits
        self._in_part, self._whole = set[str](), set[str]()
        for role, layout in stage.roles.items():
            ready = [_is_ready(records, (role, index), pods) for index in range(layout.replicas)]
            self._in_part |= {role} if any(ready) else set()
            self._whole |= {role} if ready and all(ready) else set()

    def must_wait(self, role: str, patient: bool = True) -> bool:
        """Whether a role that this one needs is not ready. patient: it must be ready with all of its pods."""
        ready = self._whole if patient else self._in_part
        return not ready.issuperset(self._needs.get(role, ()))


def gates_to_open(snapshot: Snapshot, stage: StageLayout, records: Records) -> tuple[str, ...]:
    """Names of gated pods that may be scheduled now. A gate that was opened is never closed again."""
    readiness, pods, now = Readiness(stage, records, snapshot.pods), snapshot.pods, snapshot.now
    wanted = (pods.of(record) for record in records.open())
    return tuple(
        pod.name
        for pod in wanted
        if pod is not None and pod.gated and not readiness.must_wait(pod.role, patient=now < pod.created_at + PATIENCE)
    )


def _is_ready(records: Records, slot: tuple[str, int], pods: Pods) -> bool:
    record = records.by_slot.get(slot)
    pod = pods.of(record) if record is not None and record.end is None else None
    return pod is not None and pod.ready
