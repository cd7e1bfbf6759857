"""Pods of a stage are created together; some may not be scheduled before the roles that they need are ready."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from alignment_api.contract.status import InstanceRecord
from alignment_operator.plan.layout import StageLayout
from alignment_operator.plan.records import Records
from alignment_operator.plan.snapshot import Snapshot
from alignment_operator.plan.types import PodView

PATIENCE = timedelta(minutes=5)
"""How long a pod waits for all pods of a role that it needs, from when the last of them went missing; after that one is
enough. Servers join at any time, and where spot nodes are short the last of them may be hours away."""


class Readiness:
    """Which of the roles that others need are ready: with one of their pods, or with all of them."""

    def __init__(self, snapshot: Snapshot, stage: StageLayout, records: Records) -> None:
        self._needs = stage.stage.waits
        self._whole, self._enough = set[str](), set[str]()
        for role in {role for needed in self._needs.values() for role in needed}:
            replicas = stage.roles[role].replicas
            missing = list(_missing(snapshot, records, role, replicas))
            if len(missing) < replicas:
                self._whole |= set() if missing else {role}
                patient = any(snapshot.now < since + PATIENCE for since in missing)
                self._enough |= set() if patient else {role}

    def must_wait(self, role: str) -> bool:
        """Whether a role that this one needs is not ready as far as one may expect."""
        return not self._enough.issuperset(self._needs.get(role, ()))

    def lacks(self, role: str) -> bool:
        """Whether a role that this one needs is not ready with all of its pods."""
        return not self._whole.issuperset(self._needs.get(role, ()))


def gates_to_open(snapshot: Snapshot, stage: StageLayout, records: Records) -> tuple[str, ...]:
    """Names of gated pods that may be scheduled now. A gate that was opened is never closed again."""
    readiness = Readiness(snapshot, stage, records)
    wanted = (snapshot.pods.of(record) for record in records.open())
    return tuple(pod.name for pod in wanted if pod is not None and pod.gated and not readiness.must_wait(pod.role))


def run_clocks(snapshot: Snapshot, stage: StageLayout, records: Records, released: Iterable[str]) -> Records:
    """With the moments since which lives start, and since which slots have no pod that is ready."""
    readiness, opened = Readiness(snapshot, stage, records), frozenset(released)
    by_slot = dict(records.by_slot)
    for slot, record in by_slot.items():
        pod = snapshot.pods.of(record)
        gated = readiness.must_wait(record.role) if pod is None else pod.gated and pod.name not in opened
        clocks = _clocks(record, pod, snapshot.now) if slot in stage.slots and not gated else _STOPPED
        if clocks != {name: getattr(record, name) for name in clocks}:
            by_slot[slot] = record.model_copy(update=clocks)
    return replace(records, by_slot=by_slot)


def stop_clocks(records: Records) -> Records:
    """Nothing is wanted, so nothing is late."""
    by_slot = {slot: record.model_copy(update=_STOPPED) for slot, record in records.by_slot.items()}
    return replace(records, by_slot=by_slot)


_STOPPED: dict[str, datetime | None] = {"starting_since": None, "unready_since": None}


def _clocks(record: InstanceRecord, pod: PodView | None, now: datetime) -> dict[str, datetime | None]:
    if record.end is not None:
        return {"starting_since": None, "unready_since": record.unready_since or now}
    if pod is not None and pod.ready:
        return _STOPPED
    begins = pod.gated if pod is not None else record.uid is None
    starting = record.starting_since or (now if begins else None)
    return {"starting_since": starting, "unready_since": record.unready_since or now}


def _missing(snapshot: Snapshot, records: Records, role: str, replicas: int) -> Iterator[datetime]:
    """For each slot of the role without a ready pod, since when."""
    for index in range(replicas):
        record = records.by_slot.get((role, index))
        if not _is_ready(snapshot, record):
            yield (record.unready_since if record is not None else None) or snapshot.now


def _is_ready(snapshot: Snapshot, record: InstanceRecord | None) -> bool:
    pod = snapshot.pods.of(record) if record is not None and record.end is None else None
    return pod is not None and pod.ready
