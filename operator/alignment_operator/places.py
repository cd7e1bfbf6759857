"""Where a job's sources, storage and output are: inside a pod, and as the spec would name them."""

from __future__ import annotations

from alignment_api.contract.base import field_path
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.sources import Source, parse_source
from alignment_api.derived.source_fields import sources_read
from alignment_operator.names import VOLUMES_FOLDER, output_claim, storage_claim


def storage_source(job: AlignmentJob) -> Source:
    """The job's storage: what it names, else the volume made for it."""
    if job.spec.storage is not None:
        return parse_source(job.spec.storage.source)
    return Source("pvc", "", storage_claim(job))


def output_source(job: AlignmentJob, platform: Platform) -> Source:
    """The job's output: what it names, else its own folder below the platform's, else the volume made for it."""
    if job.spec.output is not None:
        return parse_source(job.spec.output.destination)
    if platform.output is None:
        return Source("pvc", "", output_claim(job))
    base = parse_source(platform.output.destination)
    folder = "/".join(part for part in (base.path.rstrip("/"), job.metadata.namespace, job.metadata.name) if part)
    return Source(base.scheme, folder, base.claim)


def makes_storage(job: AlignmentJob) -> bool:
    """Whether the job names no storage, so that a volume is made for it."""
    return job.spec.storage is None


def makes_output(job: AlignmentJob, platform: Platform) -> bool:
    """Whether neither job nor platform names an output, so that a volume is made for it."""
    return job.spec.output is None and platform.output is None


def read_sources(job: AlignmentJob) -> dict[str, str]:
    """Field (spec.model.source) -> source, for everything that the job reads."""
    return {field_path(path): source for path, source in sources_read(job.spec).items()}


def claims(job: AlignmentJob, platform: Platform) -> dict[str, bool]:
    """Claim -> whether it is only read, for every claim that a pod of the job mounts."""
    reads = (parse_source(source) for source in read_sources(job).values())
    read_only = {source.claim: True for source in reads if source.claim is not None}
    writes = (storage_source(job), output_source(job, platform))
    return read_only | {source.claim: False for source in writes if source.claim is not None}


def path_in_pod(source: Source) -> str:
    """The path under which a pod sees a pvc:// or file:// source."""
    if source.claim is None:
        return source.path
    return "/".join(part for part in (VOLUMES_FOLDER, source.claim, source.path) if part)
