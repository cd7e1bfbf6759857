"""A manifest's sources on this machine: every one of them a path here, or remote."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment_api.contract.base import FieldPath
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.sources import parse_source
from alignment_api.derived.source_fields import sources_of


def local_job(job: AlignmentJob, beside: Path, volumes: Mapping[str, Path]) -> AlignmentJob:
    """The job with every path absolute: file://./path is seen from `beside`, the folder of its manifest.

    A pvc:// source of a claim in `volumes` becomes a path in the folder that stands for it.
    """
    value = job.model_dump(mode="json", by_alias=True)
    for path, text in sources_of(job.spec).items():
        source = parse_source(text)
        if not source.is_remote and (source.claim is None or source.claim in volumes):
            root = beside.absolute() if source.claim is None else volumes[source.claim]
            _get(value, path[:-1])[path[-1]] = f"file://{os.path.normpath(root / source.path)}"
    return AlignmentJob.model_validate(value)


def missing_volumes(job: AlignmentJob, volumes: Mapping[str, Path]) -> list[tuple[FieldPath, str]]:
    """Fields whose claim no folder stands for, with what to write."""
    claims = ((path, text, parse_source(text).claim) for path, text in sources_of(job.spec).items())
    return [
        (path, f"`{text}` is a volume of a cluster; say which folder stands for it here: --volume {claim}=FOLDER")
        for path, text, claim in claims
        if claim is not None and claim not in volumes
    ]


def _get(value: Any, path: FieldPath) -> Any:
    for name in path:
        value = value[name]
    return value
