"""What a role is handed: who it is, what to do, when to go, and whom to tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alignment_api.context import Context
from alignment_api.job import AlignmentJob
from alignment_api.spec import AlignmentJobSpec
from alignment_trainer.interruption import Interruption
from alignment_trainer.metrics import Metrics
from alignment_trainer.servers.board import StatusBoard
from alignment_trainer.servers.status import StatusServer


@dataclass(frozen=True)
class Instance:
    """One process of a role.

    board: what /status and /healthz say. stop: whether somebody asked this process to go (SIGTERM).
    server: the instance's HTTP server; None on all ranks but the first.
    """

    context: Context
    job: AlignmentJob
    board: StatusBoard
    metrics: Metrics
    stop: Interruption
    server: StatusServer | None = None

    @property
    def spec(self) -> AlignmentJobSpec:
        return self.job.spec

    @property
    def storage(self) -> Path:
        """The job's storage, as a path here."""
        return Path(self.context.storage)

    @property
    def output(self) -> Path:
        """The output's folder, as a path here."""
        return Path(self.context.output)

    @property
    def token(self) -> str:
        """The job's bearer token."""
        return Path(self.context.token_file).read_text().strip()
