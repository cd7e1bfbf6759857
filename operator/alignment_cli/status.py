"""`alignctl status`: how a run fares, from its folder."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignment_cli.display import learning_rate_text, micro_batch_text, precision_text
from alignment_cli.errors import Refused
from alignment_operator.local.folder import RunFolder


def print_status(console: Console, path: Path) -> None:
    """The columns of `kubectl get aj`, and the conditions. Raises Refused where no run was started."""
    folder = RunFolder(path)
    job, status = folder.read_job(), folder.read_status()
    if job is None:
        raise Refused(f"{path}: no run was started here; write the folder of one, for example runs/NAME")
    columns = {
        "NAME": job.metadata.name,
        "ALGORITHM": status.algorithm,
        "STAGE": status.stage,
        "PHASE": status.phase,
        "PROGRESS": status.progress_text,
        "ETA": status.eta,
        "READY": status.ready,
    }
    table = Table(box=None, pad_edge=False)
    for heading in columns:
        table.add_column(heading)
    table.add_row(*(value or "" for value in columns.values()))
    console.print(table)
    if status.precision is not None:
        console.print(precision_text(status.precision), highlight=False)
    if status.learning_rate is not None:
        console.print(learning_rate_text(status.learning_rate), highlight=False)
    if status.micro_batch is not None:
        console.print(micro_batch_text(status.micro_batch), highlight=False)
    for condition in status.conditions:
        console.print(f"{condition.type}={condition.status} {condition.reason}: {condition.message}", highlight=False)
