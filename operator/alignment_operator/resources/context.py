"""The Context of a role's process in a pod: the Kubernetes runtime's answer to "where is everything?"."""

from __future__ import annotations

from alignment_api.contract.context import Context, Pins
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.roles import PORT
from alignment_api.derived.precision import training_gpu
from alignment_operator import names
from alignment_operator.places import (
    NEEDS,
    has_storage,
    output_source,
    path_in_pod,
    sources_of_role,
    storage_source,
)
from alignment_operator.plan.types import Instance

RENDEZVOUS_PORT = 29500
"""torchrun's usual port."""


def build_context(job: AlignmentJob, instance: Instance, platform: Platform) -> Context:
    """Paths are those of the mounts in `pod.py`, hosts the Services of `objects.py`."""
    return Context(
        job=job.metadata.name,
        uid=job.metadata.uid,
        stage=instance.stage,
        role=instance.role,
        index=instance.index,
        life=instance.life,
        replicas=instance.replicas,
        processes=instance.processes,
        gpus=instance.gpus,
        training_gpu=training_gpu(job.spec, platform),
        job_file=f"{names.JOB_FOLDER}/{names.JOB_FILE}",
        storage=path_in_pod(storage_source(job)) if has_storage(job, instance.role) else None,
        output=path_in_pod(output_source(job, platform)),
        sources=_sources(job, instance.role),
        volumes=names.VOLUMES_FOLDER,
        pins=_pins(job, instance.role),
        peers={role: (f"http://{names.server_name(job, role)}:{PORT}",) for role in instance.peers},
        host="0.0.0.0",
        port=PORT,
        token_file=f"{names.TOKEN_FOLDER}/{names.TOKEN_FILE}",
        outcome_file=names.OUTCOME_FILE,
        rendezvous=_rendezvous(job, instance),
        notice_seconds=platform.pools.named(instance.pool).notice_seconds,
        scratch=names.SCRATCH_FOLDER,
    )


def _sources(job: AlignmentJob, role: str) -> dict[str, str]:
    read = sources_of_role(job, role)
    return {text: path_in_pod(source) for text, source in read.items() if not source.is_remote}


def _pins(job: AlignmentJob, role: str) -> Pins | None:
    """For roles that have no storage to read them in."""
    status = job.status
    if NEEDS[role].storage is not None or status.model is None or status.precision is None:
        return None
    return Pins(
        model=status.model,
        precision=status.precision,
        micro_batch=status.micro_batch,
        reward_models=status.reward_models or {},
    )


def _rendezvous(job: AlignmentJob, instance: Instance) -> str:
    """The first pod of this very life: a leftover of an older one is never met."""
    if instance.replicas == 1:
        return f"127.0.0.1:{RENDEZVOUS_PORT}"
    first = names.instance_name(job, instance.role, 0, instance.life)
    return f"{first}.{names.gang_name(job, instance.role)}:{RENDEZVOUS_PORT}"
