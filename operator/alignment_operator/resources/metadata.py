"""What every object of a job carries."""

from __future__ import annotations

from typing import Any

from alignment_api.contract.job import API_VERSION, KIND, AlignmentJob
from alignment_operator.names import job_labels

Manifest = dict[str, Any]


def build_metadata(job: AlignmentJob, name: str, labels: dict[str, str] | None = None, owned: bool = True) -> Manifest:
    """Name, namespace, labels, and (but for what outlives the job) the job as its owner."""
    metadata: Manifest = {
        "name": name,
        "namespace": job.metadata.namespace,
        "labels": labels or job_labels(job),
    }
    if owned:
        metadata["ownerReferences"] = [owner_reference(job)]
    return metadata


def owner_reference(job: AlignmentJob) -> Manifest:
    """The object goes when the job goes."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
