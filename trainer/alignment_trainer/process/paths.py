"""Where the paths that a process was given lead."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from alignment_api.contract.base import field_path
from alignment_api.contract.context import Context
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.source_fields import sources_read
from alignment_trainer.process.errors import UserError


def check_paths(context: Context, spec: AlignmentJobSpec) -> None:
    """Raises UserError where a path inside a volume leads out of it by a symbolic link, or a link below what is read.

    Beside it stand other volumes, the job's token, and whatever the image holds. A laptop has no volumes.
    """
    if context.volumes is None:
        return
    volumes = Path(context.volumes)
    for field, path in _paths(context, spec):
        if not path.is_relative_to(volumes):
            continue
        volume = volumes / path.relative_to(volumes).parts[0]
        leads = path.resolve()
        if not leads.is_relative_to(volume.resolve()):
            raise UserError(
                "PathLeavesVolume",
                f"{field}: {path} leads by a symbolic link to {leads}, out of its volume {volume}; "
                "write a path whose links stay inside the claim",
            )


def _paths(context: Context, spec: AlignmentJobSpec) -> Iterator[tuple[str, Path]]:
    """What is written, and what is read with every link below it: files of models and data, modules."""
    if context.storage is not None:
        yield "spec.storage.source", Path(context.storage)
    yield "spec.output.destination", Path(context.output)
    for field, source in sources_read(spec).items():
        if source in context.sources:
            path = Path(context.sources[source])
            yield from ((field_path(field), each) for each in (path, *_links(path)))


def _links(folder: Path) -> Iterator[Path]:
    """Every link below a folder, and below the folders that they lead to. Those of a hub's cache are links, too."""
    found, seen = [folder], set[Path]()
    while found:
        here = found.pop()
        if not here.is_dir() or here.resolve() in seen:
            continue
        seen.add(here.resolve())
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield Path(entry.path)  # refused by who asks, before its folder is looked at
                if entry.is_dir():
                    found.append(Path(entry.path))
