"""A role instance on this machine over its whole life: waiting at its gate, running, asked to go, ended."""

from __future__ import annotations

import signal
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pydantic import ValidationError

from alignment_api.contract.context import InstanceStatus, Outcome
from alignment_operator.local import process
from alignment_operator.local.folder import RunFolder
from alignment_operator.plan.types import Instance, PodView

_LOG_TAIL = 2000
"""Bytes of a log that are shown when a process ended without an Outcome."""


@dataclass
class Task:
    """What a pod is on a cluster."""

    instance: Instance
    created_at: datetime
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    gated: bool = False
    process: process.RoleProcess | None = None
    gpus: tuple[int, ...] = ()
    """Indices of the GPUs that are its own."""
    go_by: datetime | None = None
    """Set when it was asked to go: it is killed then."""
    status: InstanceStatus | None = None
    """Its last word."""
    tidied: bool = False
    """What it left (children, scratch) is gone."""

    @property
    def running(self) -> bool:
        """Its process lives."""
        return self.process is not None and self.process.poll() is None

    @property
    def ended(self) -> bool:
        """Its process has lived."""
        return self.process is not None and self.process.poll() is not None

    def ask_to_go(self, now: datetime, grace: timedelta) -> None:
        """SIGTERM, once; `kill_when_late` follows it up."""
        if self.go_by is not None:
            return
        self.go_by = now + grace
        if self.process is not None and self.running:
            process.send(self.process.pid, signal.SIGTERM)

    def kill_when_late(self, now: datetime) -> None:
        """SIGKILL to it and everything below it, when its grace is over."""
        if self.go_by is not None and now >= self.go_by:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to it and everything below it."""
        if self.process is not None and self.running:
            process.kill(self.process.pid)
            self.process.wait()

    def view(self, folder: RunFolder) -> PodView:
        """The task as planning sees it."""
        view = PodView(
            name=self.instance.name,
            uid=self.uid,
            role=self.instance.role,
            index=self.instance.index,
            life=self.instance.life,
            stage=self.instance.stage,
            phase="Running" if self.running else "Pending",
            created_at=self.created_at,
            ready=self.running and self.status is not None and self.status.ready,
            gated=self.gated,
            gone_by=self.go_by,
            status=self.status,
        )
        if self.process is None and not self.gated:
            return PodView(
                **vars(view)
                | {
                    "reason": "Unschedulable",
                    "message": "waits for a free GPU here, or for its predecessor to end",
                }
            )
        return PodView(**vars(view) | self._end(folder)) if self.ended else view

    def _end(self, folder: RunFolder) -> dict[str, object]:
        code = self.process.returncode if self.process is not None else None
        assert code is not None, "asked of a task that has ended"
        exit_code = 128 - code if code < 0 else code
        outcome = _read_outcome(folder, self.instance.name)
        return {
            "phase": "Succeeded" if exit_code == 0 else "Failed",
            "exit_code": exit_code,
            "outcome": outcome,
            # Nobody but this runtime reclaims a process: one that saved and went was asked to by somebody else.
            "disrupted": self.go_by is None and outcome is not None and outcome.result == "interrupted",
            "reason": None if outcome else ("Killed" if exit_code == 128 + signal.SIGKILL else "NoOutcome"),
            "message": None if outcome else _last_words(folder, self.instance.name, exit_code),
        }


def _read_outcome(folder: RunFolder, name: str) -> Outcome | None:
    try:
        return Outcome.model_validate_json(folder.outcome_file(name).read_text(), strict=True, extra="ignore")
    except (OSError, ValidationError):
        return None


def _last_words(folder: RunFolder, name: str, exit_code: int) -> str:
    log = folder.log_file(name)
    tail = log.read_bytes()[-_LOG_TAIL:].decode(errors="replace").strip().rsplit("\n", 1)[-1] if log.exists() else ""
    return f"exit code {exit_code} without an outcome; see {log}" + (f"; its last line: {tail}" if tail else "")
