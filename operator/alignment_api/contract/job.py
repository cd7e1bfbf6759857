"""The object itself."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from alignment_api.contract.base import Contract
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import AlignmentJobStatus

GROUP = "alignment.run"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "AlignmentJob"
PLURAL = "alignmentjobs"
JOB_LABEL = f"{GROUP}/job"
MAX_NAME = 40
"""Characters of a job's name: pods, hostnames and Services are named after it and must stay within 63."""


class ObjectMeta(Contract):
    """The metadata that is read. The rest is Kubernetes' own."""

    model_config = ConfigDict(extra="ignore")

    name: str
    """Name of the job: lower case letters, digits and dashes, a letter first, at most 40 characters."""
    namespace: str | None = None
    """Its namespace."""
    uid: str = ""
    """Given by the apiserver."""
    generation: int = 1
    """Grows with every change of the spec."""
    resource_version: str = ""
    """For preconditions."""
    deletion_timestamp: str | None = None
    """Set while it is being deleted."""
    labels: dict[str, str] = {}
    """The user's."""
    annotations: dict[str, str] = {}
    """The user's."""


class AlignmentJob(Contract):
    """One object is everything an engineer writes."""

    api_version: Literal["alignment.run/v1alpha1"]
    """alignment.run/v1alpha1"""
    kind: Literal["AlignmentJob"]
    """AlignmentJob"""
    metadata: ObjectMeta
    """Name and namespace."""
    spec: AlignmentJobSpec
    """What to do."""
    status: AlignmentJobStatus = AlignmentJobStatus()
    """What is."""
