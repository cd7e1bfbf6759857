"""What a role is handed: who it is, what to do, when to go, and whom to tell."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path

from alignment_api.contract.context import ADDRESS_VARIABLE, Context
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.roles import StageName
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.reward_stage import REWARD_FOLDER, spec_of_stage, training_field
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard
from alignment_trainer.process.status_server import StatusServer

EXPORT_FOLDER = "model"
"""Of an output: the trained model as a Hugging Face folder."""


@dataclass(frozen=True)
class Instance:
    """One process of a role. Stage `reward` has a spec, storage and output of its own: it is a job within the job.

    board: what /status and /healthz say. stop: whether somebody asked this process to go (SIGTERM).
    server: the instance's HTTP server; None on all ranks but the first.
    """

    context: Context
    job: AlignmentJob
    board: StatusBoard
    metrics: Metrics
    stop: Interruption
    server: StatusServer | None = None

    def at_stage(self, stage: StageName) -> Instance:
        """The same process, seen from another stage."""
        return replace(self, context=self.context.model_copy(update={"stage": stage}))

    @property
    def makes_reward(self) -> bool:
        """Whether this is stage `reward`."""
        return self.context.stage == "reward"

    @property
    def spec(self) -> AlignmentJobSpec:
        """What this stage's roles follow."""
        return spec_of_stage(self.job.spec, self.context.stage)

    @property
    def storage(self) -> str:
        """The stage's storage: a path here, or s3://bucket/prefix; the job's own, or a folder of it.

        Raises RuntimeError in a role that has none.
        """
        if self.context.storage is None:
            raise RuntimeError(f"role {self.context.role} has no storage")
        return f"{self.context.storage}/{REWARD_FOLDER}" if self.makes_reward else self.context.storage

    @property
    def output(self) -> str:
        """The output's folder: a path here, or s3://bucket/prefix. A reward model stays in storage: it is a means."""
        return self.storage if self.makes_reward else self.context.output

    @property
    def data_field(self) -> str:
        """Where the manifest says what `spec.data` of this stage is."""
        return f"{training_field(self.job.spec)}.preferences" if self.makes_reward else "spec.data"

    @property
    def model_field(self) -> str:
        """Where the manifest says what `spec.model` of this stage is."""
        own = self.makes_reward and self.spec.model != self.job.spec.model
        return f"{training_field(self.job.spec)}.model" if own else "spec.model"

    @property
    def address(self) -> str | None:
        """By which peers reach this instance, where its runtime knows."""
        told = os.environ.get(ADDRESS_VARIABLE) or self.context.host
        return None if ip_address(told).is_unspecified else told

    @property
    def token(self) -> str:
        """The job's bearer token."""
        return Path(self.context.token_file).read_text().strip()
