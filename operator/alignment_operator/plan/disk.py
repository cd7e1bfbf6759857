"""How much of its node's disk a pod asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from alignment_api.contract.base import FieldPath
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform, Pool
from alignment_api.contract.sources import parse_source
from alignment_api.derived.adapters import trained_parameters
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.role_memory import GIB
from alignment_api.derived.source_fields import sources_read
from alignment_operator.places import kind_of, needs_of, output_source, storage_source

TEMPORARY_GIB = {"gpu": 10, "cpu": 4}
"""Logs, compiled kernels and other caches below /tmp; kernels for GPUs are the larger ones."""
HUB_BYTES = 4
"""Bytes per parameter of a model's files on a hub or in a bucket, at most: fp32. They are downloaded below /tmp."""
_CHECKPOINT = 3
"""Such numbers in a checkpoint for each that is trained: its own and AdamW's two moments. An attempt downloads the one
that it starts from."""
_HOLDS_RESULT = ("policy", "actor", "evaluator")
"""Roles below whose /tmp the exported model stands while it goes to a bucket, or comes from there."""


@dataclass(frozen=True)
class Disk:
    """Kubernetes quantities: bytes of ephemeral storage."""

    request: str
    limit: str | None
    """None where nobody knows how much will be downloaded: a limit that is a guess would evict a sound pod."""


def disk_of(job: AlignmentJob, role: str, platform: Platform, pool: Pool) -> Disk:
    """What the spec says, else what a process of the role leaves on disk, downloads, and sends to a bucket."""
    wanted = getattr(job.spec.roles, role).ephemeral_storage
    if wanted is not None:
        return Disk(wanted, wanted)
    downloads = [*_downloads(job, role), *_results(job, role, platform), *_stored(job, role)]
    known = sum(count for count in downloads if count is not None)
    size = f"{TEMPORARY_GIB['gpu' if pool.gpu else 'cpu'] + math.ceil(known * HUB_BYTES / GIB)}Gi"
    return Disk(size, None if None in downloads else size)


def _downloads(job: AlignmentJob, role: str) -> Iterator[int | None]:
    """Parameters of every model that the role downloads; None for what has not been counted, and for data."""
    needs = needs_of(job, role)
    for path, text in sources_read(job.spec).items():
        if kind_of(path) in needs.reads and parse_source(text).is_remote:
            yield _parameters(job, path)


def _results(job: AlignmentJob, role: str, platform: Platform) -> Iterator[int | None]:
    """Parameters of the exported model, where the role holds a copy of it for a bucket."""
    if role in _HOLDS_RESULT and output_source(job, platform).is_remote:
        yield job.status.model.parameters if job.status.model is not None else None


def _stored(job: AlignmentJob, role: str) -> Iterator[int | None]:
    """Parameters, as if they were a model's, of what the role holds a copy of where the storage is a bucket. None for
    prepared rows, which nobody has counted."""
    if needs_of(job, role).storage is None or not storage_source(job).is_remote:
        return
    yield None
    if role == "policy" and job.status.model is not None:
        yield _CHECKPOINT * trained_parameters(job.spec.training, Decoder.reported(job.status.model))


def _parameters(job: AlignmentJob, path: FieldPath) -> int | None:
    kind, status = kind_of(path), job.status
    if kind == "model":
        return status.model.parameters if status.model is not None else None
    place = next((part for part in path if isinstance(part, int)), None)
    if kind != "reward model" or place is None:
        return None
    report = (status.reward_models or {}).get(job.spec.algorithm.rewards[place].component)
    return report.parameters if report is not None else None
