"""How a role's process ends: the Outcome that it leaves and the code it exits with."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from alignment_api.contract.context import Outcome
from alignment_api.contract.status import CheckpointStatus
from alignment_trainer.process.errors import failure_of

MAX_BYTES = 4096
"""What Kubernetes keeps of a termination message."""
EXIT_CODES = {"succeeded": 0, "failed": 1, "interrupted": 143}


def outcome_of_error(error: BaseException, saved: CheckpointStatus | None = None) -> Outcome:
    """The outcome of a role that an exception ended. saved: its last verified checkpoint, which stays."""
    return Outcome(result="failed", failure=failure_of(error), checkpoint=saved)


def end_process(code: int) -> NoReturn:
    """Ends this process now, without Python's finalization; whatever must be closed is closed before.

    A thread of gloo that still holds a tensor of the last collective asks for the interpreter that finalization has
    taken away, and aborts the process (pytorch issue 190489): a finished rank would count as failed.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def write_outcome(path: Path, outcome: Outcome) -> None:
    """Leaves the outcome, shortened to MAX_BYTES, in one piece.

    A pod's termination message is a file mounted by itself: it can be written, not replaced, and its folder may be
    read-only. There the write is one call.
    """
    text = _fit(outcome).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        _write_in_place(path, text)


def clear_outcome(path: Path) -> None:
    """Forgets what an earlier life of this instance left, so that it is not taken for this one's."""
    if path.exists() and path.stat().st_size:
        _write_in_place(path, b"")


def _write_in_place(path: Path, text: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(descriptor, text)
    finally:
        os.close(descriptor)


def _fit(outcome: Outcome) -> str:
    text = outcome.model_dump_json(exclude_none=True)
    while outcome.failure and (excess := len(text.encode()) - MAX_BYTES) > 0:
        message = outcome.failure.message
        kept = message[: max(0, len(message) - max(excess // 2, 1) - 4)] + " ..."
        outcome = outcome.model_copy(update={"failure": outcome.failure.model_copy(update={"message": kept})})
        text = outcome.model_dump_json(exclude_none=True)
    return text
