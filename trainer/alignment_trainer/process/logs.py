"""Logs as JSON lines on standard error: time, level, job, role, message, and whatever `extra` says."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from datetime import UTC, datetime
from typing import TextIO

from alignment_trainer.process.errors import without_values

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_QUIET = ("httpx", "httpcore", "filelock", "urllib3", "uvicorn", "datasets", "huggingface_hub", "transformers")


class JsonFormatter(logging.Formatter):
    """One JSON object a line. labels: fields that every line carries."""

    def __init__(self, labels: dict[str, str | int]) -> None:
        super().__init__()
        self._labels = labels

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self._labels,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = without_values(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


def configure_logs(labels: dict[str, str | int], stream: TextIO | None = None) -> None:
    """Sends every logger's lines, and Python's warnings, to `stream` (standard error) as JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(labels))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)
    warnings.simplefilter("default")


def quiet_libraries() -> None:
    """Ends progress bars: the log is JSON lines. Imports transformers, which takes seconds."""
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bars()
    disable_progress_bar()  # type: ignore[no-untyped-call]
