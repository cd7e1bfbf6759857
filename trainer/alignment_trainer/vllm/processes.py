"""What runs in vLLM's own processes from their first moment on: our log format, and an end when the role has ended."""

from __future__ import annotations

import os
import select
import signal
import threading

from alignment_trainer.process.logs import JsonFormatter

_WATCH = "role-watch"


def formatter(labels: dict[str, str | int], role: int) -> JsonFormatter:
    """The formatter that vLLM's logging configuration names; it also begins to watch the process `role`.

    vLLM configures its logs first thing in each of its processes, which makes this the hook that comes before a large
    model is loaded. Its engine core would live on when the process that started it is killed.
    """
    is_watching = any(thread.name == _WATCH for thread in threading.enumerate())
    if os.getpid() != role and not is_watching:
        threading.Thread(target=_end_with, args=(role,), name=_WATCH, daemon=True).start()
    return JsonFormatter(labels)


def _end_with(role: int) -> None:
    """Kills this process once the process `role` is gone."""
    try:
        descriptor = os.pidfd_open(role)
        select.select([descriptor], [], [])
    except ProcessLookupError:
        pass  # it went before we could look
    os.kill(os.getpid(), signal.SIGKILL)
