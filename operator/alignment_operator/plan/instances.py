"""Which pods must exist: the open lives of the ledger, as typed instances."""

from __future__ import annotations

from collections.abc import Iterable

from alignment_api.job import AlignmentJob
from alignment_api.precision import as_far_as_known
from alignment_api.reward_stage import spec_of_stage
from alignment_api.roles import ROLES, PoolName, Stage
from alignment_api.sizing import replicas_of, size_of
from alignment_api.spec import AlignmentJobSpec
from alignment_api.status import InstanceRecord
from alignment_operator.names import instance_name
from alignment_operator.places import neighbours
from alignment_operator.plan.disk import disk_of
from alignment_operator.plan.fates import fate_of
from alignment_operator.plan.gates import must_wait
from alignment_operator.plan.ledger import Ledger, pod_of
from alignment_operator.plan.types import Instance, Observed, PodView, Removal


def pool_of(spec: AlignmentJobSpec, role: str) -> PoolName:
    """Where the role's pods go: what its placement says; a role without a model needs no paid node."""
    placement: PoolName = getattr(getattr(spec.roles, role), "placement", "cpu")
    return placement


def parameters_in(job: AlignmentJob, stage: Stage) -> int | None:
    """Parameters of the model of a stage; None where nobody has counted them: `prepare` looks at spec.model alone."""
    same = spec_of_stage(job.spec, stage.name).model == job.spec.model
    return job.status.model.parameters if same and job.status.model is not None else None


def spec_in(observed: Observed, stage: Stage) -> AlignmentJobSpec:
    """The spec of a stage, with the precision as far as it is known."""
    job = observed.job
    return spec_of_stage(as_far_as_known(job.spec, observed.platform, job.status.precision), stage.name)


def gang_size(spec: AlignmentJobSpec, stage: Stage) -> int:
    """Pods of the stage's gang; 0 where nothing trains."""
    return sum(replicas_of(spec, role) for role in stage.roles if ROLES[role].trainable)


def missing_instances(
    observed: Observed, stage: Stage, ledger: Ledger, wanted: Iterable[InstanceRecord]
) -> tuple[Instance, ...]:
    """The wanted lives that have no pod yet."""
    return tuple(_instance(observed, stage, ledger, line) for line in wanted if pod_of(line, observed.pods) is None)


def removals(pods: Iterable[PodView], wanted: Iterable[InstanceRecord], keep_logs: bool) -> tuple[Removal, ...]:
    """Everything else goes, unless it is going already.

    keep_logs: the newest pod of each place that ended in an error stays, so that its logs can be read.
    """
    pods = tuple(pods)
    keep = {pod.uid for line in wanted if (pod := pod_of(line, pods)) is not None}
    if keep_logs:
        failed = [pod for pod in pods if (fate := fate_of(pod)) is not None and fate.end == "failed"]
        newest = {(pod.role, pod.index): pod.uid for pod in sorted(failed, key=lambda pod: pod.life)}
        keep |= set(newest.values())
    going = (pod for pod in pods if pod.uid not in keep and pod.gone_by is None)
    return tuple(Removal(pod.name, pod.uid, version=None if pod.ended else pod.version) for pod in going)


def _instance(observed: Observed, stage: Stage, ledger: Ledger, line: InstanceRecord) -> Instance:
    job, spec = observed.job, spec_in(observed, stage)
    pool = pool_of(spec, line.role)
    nodes = observed.platform.pools.named(pool)
    size = size_of(spec, line.role, nodes, parameters_in(job, stage))
    disk = disk_of(job, line.role, nodes)
    gang = gang_size(spec, stage) if ROLES[line.role].trainable else 1
    return Instance(
        name=instance_name(job, line.role, line.index, line.life),
        role=line.role,
        index=line.index,
        life=line.life,
        stage=stage.name,
        attempt=ledger.attempt,
        pool=pool,
        replicas=replicas_of(spec, line.role),
        processes=size.processes,
        gpus=size.gpus,
        cpu=size.cpu,
        memory=size.memory,
        ephemeral_storage=disk.request,
        ephemeral_storage_limit=disk.limit,
        scratch_gib=size.scratch_gib,
        gang=gang,
        peers=stage.calls.get(line.role, ()),
        beside=neighbours(job, observed.platform, stage, job.status.single_node_claims).get(line.role, ()),
        gated=must_wait(stage, line.role, ledger, observed.pods),
    )
