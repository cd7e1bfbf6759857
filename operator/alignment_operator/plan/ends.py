"""Counting ends: each once, to the role that caused it, at the cost that its kind has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from alignment_api.contract.status import AvoidedNode, InstanceRecord, RoleStatus
from alignment_operator.plan.budgets import as_a_disruption, spend
from alignment_operator.plan.deadlines import given_up
from alignment_operator.plan.dependencies import Readiness
from alignment_operator.plan.failure_policy import AVOIDED_FOR
from alignment_operator.plan.layout import Slot
from alignment_operator.plan.pods import Pods
from alignment_operator.plan.records import Records
from alignment_operator.plan.snapshot import Snapshot
from alignment_operator.plan.stages import StageProgress
from alignment_operator.plan.terminations import (
    ENDED_EARLY,
    LOST_LATE,
    VANISHED,
    Termination,
    termination_of,
)

MOST_AVOIDED = 20
"""Nodes that a job keeps away from at once; the newest are kept. Where more turn pods away it is not the nodes."""


def count_ends(snapshot: Snapshot, stages: StageProgress) -> Records:
    """Counts each end once: a record that has its `end` is not counted again.

    A gang that loses a node shows errors of the peers at once and the loss only when the control plane notices. The
    peers' error is then made a disruption. No next life can have been opened: it waits for the lost pod.
    """
    stage, records = stages.current, stages.records
    if stage is None:
        return records
    readiness, abandoned = Readiness(snapshot, stage, records), given_up(snapshot, stage, records)
    by_slot, roles, avoided = dict(records.by_slot), dict(records.roles), records.avoided
    for group in stage.groups:
        lives = records.of(group)
        cause = _cause(lives, snapshot.pods, readiness, abandoned)
        if cause is not None:
            life, termination = cause
            roles[life.role] = _counted(roles[life.role], termination)
            by_slot |= {(each.role, each.index): _ended(each, termination, each is life) for each in lives}
            use = spend(lives[0].budget, termination, snapshot.spec.budgets, snapshot.now)
            by_slot[group[0]] = by_slot[group[0]].model_copy(update={"budget": use})
            avoided = _avoiding(avoided, termination, snapshot.now)
        elif (lost := _lost_late(lives, snapshot.pods)) is not None:
            failed = next(life.role for life in lives if life.reason is not None)
            roles[failed] = roles[failed].model_copy(update={"failures": roles[failed].failures - 1})
            roles[lost.role] = _counted(roles[lost.role], LOST_LATE)
            by_slot |= {(each.role, each.index): _ended(each, LOST_LATE, each is lost) for each in lives}
            if lives[0].budget is not None:
                use = as_a_disruption(lives[0].budget, LOST_LATE)
                by_slot[group[0]] = by_slot[group[0]].model_copy(update={"budget": use})
    return Records(by_slot, roles, avoided)


def _cause(
    lives: list[InstanceRecord], pods: Pods, readiness: Readiness, abandoned: Mapping[Slot, Termination]
) -> tuple[InstanceRecord, Termination] | None:
    """What ended the life of a group, and where; None while it goes on.

    A gang that loses a node also shows errors of the peers: those are no failures, also where the lost pod is not given
    up yet. What waited in vain although all that it needs was there has failed.
    """
    if not lives or any(life.end is not None for life in lives):
        return None
    found = [(life, end) for life in lives if (end := _termination(life, pods, abandoned)) is not None]
    bad = [(life, end) for life, end in found if end.kind != "success"]
    if bad:
        life, end = min(bad, key=lambda pair: pair[1].policy.rank)
        if end.policy.may_be_an_echo and (lost := _on_a_lost_node(lives, pods)) is not None:
            return lost, LOST_LATE
        in_vain = end.kind == "waiting" and not _lacks_something(lives, pods, readiness)
        return life, replace(end, kind="own") if in_vain else end
    return (lives[0], ENDED_EARLY) if len(found) == len(lives) else None


def _termination(life: InstanceRecord, pods: Pods, abandoned: Mapping[Slot, Termination]) -> Termination | None:
    pod = pods.of(life)
    if pod is not None:
        return termination_of(pod) or abandoned.get((life.role, life.index))
    return VANISHED if life.uid is not None else None


def _lacks_something(lives: Iterable[InstanceRecord], pods: Pods, readiness: Readiness) -> bool:
    """Whether a peer has not started, or a role that is needed is not ready with all of its pods."""
    found = [pods.of(life) for life in lives]
    started = all(pod is not None and pod.phase != "Pending" for pod in found)
    return not started or any(readiness.lacks(life.role) for life in lives)


def _lost_late(lives: list[InstanceRecord], pods: Pods) -> InstanceRecord | None:
    """The life whose lost node explains the error that was counted for its gang."""
    if not lives or any(life.end != "failed" for life in lives):
        return None
    counted = next((life for life in lives if life.reason is not None), None)
    pod = pods.of(counted) if counted is not None else None
    end = termination_of(pod) if pod is not None else None
    if end is None or not end.policy.may_be_an_echo:
        return None
    return _on_a_lost_node(lives, pods)


def _on_a_lost_node(lives: Iterable[InstanceRecord], pods: Pods) -> InstanceRecord | None:
    found = ((life, pods.of(life)) for life in lives)
    return next((life for life, pod in found if pod is not None and pod.node_lost and not pod.ended), None)


def _counted(role: RoleStatus, termination: Termination) -> RoleStatus:
    if termination.policy.end == "failed":
        return role.model_copy(update={"failures": role.failures + 1})
    return role.model_copy(update={"disruptions": role.disruptions + 1})


def _ended(life: InstanceRecord, termination: Termination, here: bool) -> InstanceRecord:
    return life.model_copy(update={"end": termination.policy.end, "reason": termination.reason if here else None})


def _avoiding(avoided: tuple[AvoidedNode, ...], termination: Termination, now: datetime) -> tuple[AvoidedNode, ...]:
    if not termination.policy.avoids_node or not termination.node:
        return avoided
    new = AvoidedNode(name=termination.node, until=now + AVOIDED_FOR, reason=termination.reason)
    return (*(node for node in avoided if node.name != new.name), new)[-MOST_AVOIDED:]
