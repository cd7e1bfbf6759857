"""Which pods must exist: the open lives of a stage, as typed instances; and which must go."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from alignment_api.job import AlignmentJob
from alignment_api.status import InstanceRecord
from alignment_operator.names import instance_name
from alignment_operator.plan.dependencies import Readiness
from alignment_operator.plan.layout import StageLayout
from alignment_operator.plan.pods import Pods
from alignment_operator.plan.records import Records
from alignment_operator.plan.terminations import termination_of
from alignment_operator.plan.types import Instance, Removal


def missing_instances(
    job: AlignmentJob, stage: StageLayout, records: Records, wanted: Iterable[InstanceRecord], pods: Pods
) -> tuple[Instance, ...]:
    """The wanted lives that have no pod yet."""
    readiness, attempt = Readiness(stage, records, pods), records.attempt
    return tuple(
        replace(_instance(job, stage, record), attempt=attempt, gated=readiness.must_wait(record.role))
        for record in wanted
        if pods.of(record) is None
    )


def removals(pods: Pods, wanted: Iterable[InstanceRecord], keep_logs: bool) -> tuple[Removal, ...]:
    """Everything else goes, unless it is going already.

    keep_logs: the newest pod of each slot that ended in an error stays, so that its logs can be read.
    """
    keep = {pod.uid for record in wanted if (pod := pods.of(record)) is not None}
    if keep_logs:
        failed = (pod for pod in pods if (end := termination_of(pod)) is not None and end.end == "failed")
        keep |= set({(pod.role, pod.index): pod.uid for pod in sorted(failed, key=lambda pod: pod.life)}.values())
    return tuple(Removal(pod.name, pod.uid) for pod in pods if pod.uid not in keep and pod.gone_by is None)


def _instance(job: AlignmentJob, stage: StageLayout, record: InstanceRecord) -> Instance:
    role = stage.roles[record.role]
    return Instance(
        name=instance_name(job, record.role, record.index, record.life),
        role=record.role,
        index=record.index,
        life=record.life,
        stage=stage.stage.name,
        attempt=0,
        pool=role.pool,
        replicas=role.replicas,
        processes=role.size.processes,
        gpus=role.size.gpus,
        cpu=role.size.cpu,
        memory=role.size.memory,
        scratch_gib=role.size.scratch_gib,
        gang=len(stage.gang) if role.nature.trainable else 1,
        peers=stage.stage.calls.get(record.role, ()),
    )
