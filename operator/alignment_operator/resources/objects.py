"""What pods lean on: the spec's ConfigMap, the token, Services, volumes and the NetworkPolicy."""

from __future__ import annotations

from alignment_api.contract.handed import DEFAULTS, defaults_in
from alignment_api.contract.job import AlignmentJob, ObjectMeta
from alignment_api.contract.platform import Platform
from alignment_api.contract.roles import PORT
from alignment_api.derived.learning_rate import with_learning_rate
from alignment_operator import names
from alignment_operator.plan.types import Support
from alignment_operator.resources.metadata import Manifest, build_metadata


def build_objects(job: AlignmentJob, support: Support, platform: Platform) -> tuple[Manifest, ...]:
    """Everything pods lean on but for the token's Secret, in the order in which to create it."""
    return (
        *_claims(job, support, platform),
        build_config(job, support.attempt),
        *(build_service(job, role) for role in support.serving_roles),
        *(build_gang_service(job, role) for role in support.gang_roles),
        build_network_policy(job, platform),
        *([build_pod_group(job, support.attempt, support.gang)] if is_grouped(platform, support.gang) else []),
    )


def is_grouped(platform: Platform, gang: int) -> bool:
    """Whether a gang of so many pods is a PodGroup: one pod is scheduled as a whole by itself."""
    return platform.gang == "podGroup" and gang > 1


def build_pod_group(job: AlignmentJob, attempt: int, pods: int) -> Manifest:
    """The gang of one attempt: all of its pods are scheduled or none is, and all are preempted or none is."""
    return {
        "apiVersion": "scheduling.k8s.io/v1beta1",
        "kind": "PodGroup",
        "metadata": build_metadata(job, names.pod_group_name(job, attempt)),
        "spec": {"schedulingPolicy": {"gang": {"minCount": pods}}, "disruptionMode": {"all": {}}},
    }


def build_config(job: AlignmentJob, attempt: int) -> Manifest:
    """The validated, defaulted job as it is when the attempt begins, with revisions as `prepare` pinned them."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": build_metadata(job, names.config_name(job, attempt)),
        "immutable": True,
        "data": {names.JOB_FILE: job_as_read(job).model_dump_json(exclude={"status"}, exclude_none=True, indent=2)},
    }


def build_token(job: AlignmentJob, value: str) -> Manifest:
    """The job's bearer token. `value` is random and made by the caller, who never reads it back."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": build_metadata(job, names.token_name(job)),
        "immutable": True,
        "type": "Opaque",
        "stringData": {names.TOKEN_FILE: value},
    }


def build_service(job: AlignmentJob, role: str) -> Manifest:
    """The headless Service of a role's ready pods."""
    return _headless(job, role, names.server_name(job, role), before_ready=False)


def build_gang_service(job: AlignmentJob, role: str) -> Manifest:
    """The headless Service by which a gang's pods find each other, ready or not."""
    return _headless(job, role, names.gang_name(job, role), before_ready=True)


def build_network_policy(job: AlignmentJob, platform: Platform) -> Manifest:
    """Lets in the job's own pods, and at the HTTP port those whom the platform names: the operator and the scraper."""
    ours = {"podSelector": {"matchLabels": {names.UID_LABEL: job.metadata.uid}}}
    ingress: list[Manifest] = [{"from": [ours]}]
    if platform.ingress_from:
        ingress.append({"from": list(platform.ingress_from), "ports": [{"protocol": "TCP", "port": PORT}]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": build_metadata(job, names.policy_name(job)),
        "spec": {**ours, "policyTypes": ["Ingress"], "ingress": ingress},
    }


def build_claim(job: AlignmentJob, platform: Platform, name: str, owned: bool) -> Manifest:
    """A volume of the platform's class and size."""
    storage = platform.storage
    named = {} if storage.storage_class_name is None else {"storageClassName": storage.storage_class_name}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": build_metadata(job, name, owned=owned),
        "spec": {
            "accessModes": [storage.access_mode],
            "resources": {"requests": {"storage": storage.size}},
            **named,
        },
    }


def _claims(job: AlignmentJob, support: Support, platform: Platform) -> tuple[Manifest, ...]:
    storage = (build_claim(job, platform, names.storage_claim(job), owned=True),) if support.makes_storage else ()
    output = (build_claim(job, platform, names.output_claim(job), owned=False),) if support.makes_output else ()
    return storage + output


def _headless(job: AlignmentJob, role: str, name: str, before_ready: bool) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": build_metadata(job, name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": before_ready,
            "selector": {names.UID_LABEL: job.metadata.uid, names.ROLE_LABEL: role},
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }


def job_as_read(job: AlignmentJob) -> AlignmentJob:
    """The job without the bookkeeping of its metadata, with its learning rate and with pinned revisions."""
    spec = with_learning_rate(job.spec, job.status.learning_rate)
    metadata = ObjectMeta(
        name=job.metadata.name,
        namespace=job.metadata.namespace,
        uid=job.metadata.uid,
        generation=job.metadata.generation,
        annotations={DEFAULTS: defaults_in(spec)},
    )
    if job.status.model is not None and job.status.model.revision is not None:
        spec = spec.model_copy(update={"model": spec.model.model_copy(update={"revision": job.status.model.revision})})
    if job.status.data is not None and job.status.data.revision is not None:
        spec = spec.model_copy(update={"data": spec.data.model_copy(update={"revision": job.status.data.revision})})
    return job.model_copy(update={"metadata": metadata, "spec": spec})
