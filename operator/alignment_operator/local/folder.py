"""A run's folder: what a person looks at, and below `.run/` what the runtime keeps for itself."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.status import AlignmentJobStatus
from alignment_api.contract.stored import Unreadable, read_stored_job, read_stored_status
from alignment_api.yaml.text import dump_yaml
from alignment_api.yaml.tree import parse_yaml
from alignment_operator.names import short_hash
from alignment_operator.resources.objects import job_as_read


class FolderInUse(Exception):
    """Another `alignctl run` holds the folder."""


class FolderDamaged(Exception):
    """A file of the folder is not what a run left there."""


class RunFolder:
    """`job.yaml` as defaulted, `status.json`, `logs/`, and what the roles write: `model/`, `checkpoints/`, ..."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.job_file = self.path / "job.yaml"
        self.status_file = self.path / "status.json"
        self.logs = self.path / "logs"
        self._own = self.path / ".run"
        self.token_file = self._own / "token"
        self._processes_file = self._own / "processes.json"
        self._scratch = _memory_folder() / f"alignctl-{os.getuid()}-{short_hash(str(self.path))}"
        self._lock: int | None = None

    def lock(self) -> None:
        """Makes the folder and holds it until this process ends. Raises FolderInUse."""
        for folder in (self.path, self.logs, self._own, self._own / "outcomes"):
            folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._own / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise FolderInUse(
                f"{self.path} is in use by another run; wait for it, stop it with Ctrl-C, or choose another --folder"
            ) from None
        self._lock = descriptor

    def unlock(self) -> None:
        """Lets another run in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read_job(self) -> AlignmentJob | None:
        """The job whose run this is, with its UID; None where no run was started here. Raises FolderDamaged."""
        if not self.job_file.exists():
            return None
        documents, _ = parse_yaml(self.job_file.read_text())
        try:
            return read_stored_job(documents[0].plain() if documents else None)
        except Unreadable as error:
            raise FolderDamaged(f"{self.job_file}: not the job of a run ({error}); take another --folder") from None

    def write_job(self, job: AlignmentJob) -> None:
        """`job.yaml`: every default written out."""
        _write(self.job_file, dump_yaml(job_as_json(job)))

    def read_status(self) -> AlignmentJobStatus:
        """The status so far; that of a new job where there is none. Raises FolderDamaged."""
        if not self.status_file.exists():
            return AlignmentJobStatus()
        try:
            return read_stored_status(json.loads(self.status_file.read_bytes()))
        except (Unreadable, ValueError) as error:
            advice = "remove it to go through the stages again (checkpoints are kept), or take another --folder"
            raise FolderDamaged(f"{self.status_file}: not a status ({error}); {advice}") from None

    def write_status(self, status: AlignmentJobStatus) -> None:
        """`status.json`, in one piece."""
        _write(self.status_file, status.model_dump_json(indent=2, exclude_none=True) + "\n")

    def make_token(self) -> None:
        """A random token for this run's servers; only the owner may read it."""
        self.token_file.unlink(missing_ok=True)
        descriptor = os.open(self.token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))

    def spec_file(self, attempt: int) -> Path:
        """The job as the instances of that attempt read it."""
        return self._own / f"spec-{attempt}.json"

    def write_spec(self, job: AlignmentJob, attempt: int) -> None:
        """What a ConfigMap is on a cluster."""
        _write(
            self.spec_file(attempt), job_as_read(job).model_dump_json(exclude={"status"}, exclude_none=True, indent=2)
        )

    def log_file(self, instance: str) -> Path:
        """The log of one life of a role instance."""
        return self.logs / f"{instance}.log"

    def outcome_file(self, instance: str) -> Path:
        """Where one life of a role instance leaves its Outcome."""
        return self._own / "outcomes" / f"{instance}.json"

    def mark(self, instance: str = "") -> str:
        """How the processes of one life are known; of the whole run without `instance`."""
        return f"{self.path}//{instance}"

    def scratch(self, instance: str) -> Path:
        """A folder in memory for one life of a role instance."""
        return self._scratch / instance

    def make_scratch(self, instance: str) -> None:
        """An empty one; only the owner may look into it."""
        self.remove_scratch(instance)
        self._scratch.mkdir(mode=0o700, exist_ok=True)
        self.scratch(instance).mkdir(mode=0o700)

    def remove_scratch(self, instance: str | None = None) -> None:
        """That of a life that is over; None: those of the whole run."""
        shutil.rmtree(self._scratch if instance is None else self.scratch(instance), ignore_errors=True)

    def read_processes(self) -> dict[int, float]:
        """Process id -> when it started, of everything the last run had running."""
        if not self._processes_file.exists():
            return {}
        return {int(pid): started for pid, started in json.loads(self._processes_file.read_text()).items()}

    def write_processes(self, processes: dict[int, float]) -> None:
        """Remembers what runs, so that a next run can end what a killed one left."""
        _write(self._processes_file, json.dumps(processes))


def job_as_json(job: AlignmentJob) -> dict[str, Any]:
    """What an engineer writes, every default included; the status is kept apart."""
    metadata = job.metadata.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    body = job.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"metadata", "status"})
    return {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": metadata, "spec": body["spec"]}


def _memory_folder() -> Path:
    shared = Path("/dev/shm")
    return shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text)
    temporary.replace(path)
