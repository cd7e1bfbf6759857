"""Which pods must exist: the open lives of a stage, as typed instances; and which must go."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from alignment_api.contract.status import InstanceRecord
from alignment_operator.names import instance_name
from alignment_operator.places import neighbours
from alignment_operator.plan.dependencies import Readiness
from alignment_operator.plan.disk import disk_of
from alignment_operator.plan.layout import StageLayout
from alignment_operator.plan.pods import Pods
from alignment_operator.plan.records import Records
from alignment_operator.plan.snapshot import Snapshot
from alignment_operator.plan.terminations import termination_of
from alignment_operator.plan.types import Instance, Removal

BESIDE_GRACE = timedelta(seconds=30)
"""Kubernetes' own default, for containers that run on when ours has ended: a pool's notice is for what ours must save,
and until they are gone the node's GPUs are nobody's."""


def missing_instances(snapshot: Snapshot, stage: StageLayout, records: Records) -> tuple[Instance, ...]:
    """The open lives of the stage that have no pod yet, in the order of its slots."""
    readiness, attempt = Readiness(snapshot, stage, records), records.attempt
    avoid = tuple(node.name for node in records.avoided)
    return tuple(
        replace(_instance(snapshot, stage, record, attempt), gated=readiness.must_wait(record.role), avoid=avoid)
        for group in stage.groups
        for record in records.of(group)
        if record.end is None and snapshot.pods.of(record) is None
    )


def removals(pods: Pods, stage: StageLayout | None, records: Records, keep_logs: bool) -> tuple[Removal, ...]:
    """What is no open life of the stage goes, unless it is going already.

    keep_logs: the newest pod of each slot that ended in an error stays, so that its logs can be read, unless a
    container beside it runs on: that would hold the node.
    """
    slots = stage.slots if stage is not None else frozenset()
    wanted = (record for record in records.open() if (record.role, record.index) in slots)
    keep = {pod.uid for record in wanted if (pod := pods.of(record)) is not None}
    if keep_logs:
        ended = ((pod, termination_of(pod)) for pod in pods)
        failed = [pod for pod, end in ended if end is not None and end.policy.end == "failed" and not pod.lingers]
        keep |= set({(pod.role, pod.index): pod.uid for pod in sorted(failed, key=lambda pod: pod.life)}.values())
    going = (pod for pod in pods if pod.uid not in keep and pod.gone_by is None)
    return tuple(
        Removal(pod.name, pod.uid, BESIDE_GRACE if pod.lingers else None, None if pod.ended else pod.version)
        for pod in going
    )


def _instance(snapshot: Snapshot, stage: StageLayout, record: InstanceRecord, attempt: int) -> Instance:
    job, platform, role = snapshot.job, snapshot.observed.platform, stage.roles[record.role]
    disk = disk_of(job, record.role, platform, platform.pools.named(role.pool))
    beside = neighbours(job, platform, stage.stage, job.status.single_node_claims)
    return Instance(
        name=instance_name(job, record.role, record.index, record.life),
        role=record.role,
        index=record.index,
        life=record.life,
        stage=stage.stage.name,
        attempt=attempt,
        pool=role.pool,
        replicas=role.replicas,
        processes=role.size.processes,
        gpus=role.size.gpus,
        cpu=role.size.cpu,
        memory=role.size.memory,
        ephemeral_storage=disk.request,
        ephemeral_storage_limit=disk.limit,
        scratch_gib=role.size.scratch_gib,
        gang=len(stage.gang) if role.nature.trainable else 1,
        peers=stage.stage.calls.get(record.role, ()),
        beside=beside.get(record.role, ()),
    )
