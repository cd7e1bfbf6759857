"""Names, labels and paths of everything a job has. Every name fits a DNS label: 63 characters.

Names end in a short hash of the job's UID: a job that was deleted and applied again meets no leftovers.
"""

from __future__ import annotations

import base64
import hashlib

from alignment_api.contract.job import GROUP, JOB_LABEL, AlignmentJob
from alignment_api.contract.roles import StageName

UID_LABEL = f"{GROUP}/uid"
ROLE_LABEL = f"{GROUP}/role"
INDEX_LABEL = f"{GROUP}/index"
LIFE_LABEL = f"{GROUP}/life"
STAGE_LABEL = f"{GROUP}/stage"
READY_GATE = f"{GROUP}/roles-ready"
"""The scheduling gate of a pod that waits for other roles."""
AVOIDED_NODES = f"{GROUP}/avoided-nodes"
"""The annotation of a pod with the nodes that it keeps away from, apart from those of its templates."""

CONTAINER = "trainer"
JOB_FOLDER = "/etc/alignment"
JOB_FILE = "job.yaml"
TOKEN_FOLDER = "/etc/alignment-token"
TOKEN_FILE = "token"
VOLUMES_FOLDER = "/volumes"
OUTCOME_FILE = "/dev/termination-log"
SCRATCH_FOLDER = "/dev/shm"
"""In memory, and of one pod alone."""

_MAX = 63


def short_hash(uid: str) -> str:
    """Five characters that stand for a UID: lower-case letters and digits, 33 million of them."""
    return base64.b32encode(hashlib.sha256(uid.encode()).digest()).decode()[:5].lower()


def instance_name(job: AlignmentJob, role: str, index: int, life: int) -> str:
    """Name of one life of a role instance; also the pod's and its host's."""
    return _name(job, f"{role}-{index}-{life}")


def config_name(job: AlignmentJob, attempt: int) -> str:
    """The ConfigMap with the spec as it was when that attempt began."""
    return _name(job, f"spec-{attempt}")


def token_name(job: AlignmentJob) -> str:
    """The Secret with the job's bearer token."""
    return _name(job, "token")


def server_name(job: AlignmentJob, role: str) -> str:
    """The headless Service of a role's ready pods; it outlives attempts."""
    return _name(job, role)


def gang_name(job: AlignmentJob, role: str) -> str:
    """The headless Service by which a gang's pods find each other before they are ready."""
    return _name(job, f"{role}-gang")


def pod_group_name(job: AlignmentJob, attempt: int) -> str:
    """The PodGroup in which an attempt's pods are scheduled together."""
    return _name(job, f"gang-{attempt}")


def storage_claim(job: AlignmentJob) -> str:
    """The volume made for a job that names no storage."""
    return _name(job, "storage")


def output_claim(job: AlignmentJob) -> str:
    """The volume made for a job that names no output; it stays when the job goes."""
    return _name(job, "output")


def policy_name(job: AlignmentJob) -> str:
    """The NetworkPolicy of the job's pods."""
    return _name(job, "pods")


def job_labels(job: AlignmentJob) -> dict[str, str]:
    """Labels of every object of the job."""
    return {JOB_LABEL: job.metadata.name, UID_LABEL: job.metadata.uid}


def instance_labels(job: AlignmentJob, role: str, index: int, life: int, stage: StageName) -> dict[str, str]:
    """Labels of one pod: all that is needed to know it again."""
    own = {ROLE_LABEL: role, INDEX_LABEL: str(index), LIFE_LABEL: str(life), STAGE_LABEL: stage}
    return job_labels(job) | own


def _name(job: AlignmentJob, what: str) -> str:
    """<job>-<what>-<hash>; only a life in the thousands shortens a job's name of 40 characters."""
    ending = f"-{what}-{short_hash(job.metadata.uid)}"
    return job.metadata.name[: _MAX - len(ending)].rstrip("-") + ending
