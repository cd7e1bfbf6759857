"""What a role's process says of itself; written by its work, read by its server."""

from __future__ import annotations

import logging
import resource
import sys
import threading
from typing import Any

from alignment_api.contract.context import Context, InstanceStatus

log = logging.getLogger(__name__)


class StatusBoard:
    """The InstanceStatus of this process. Safe to write and read from any thread."""

    def __init__(self, context: Context | None = None) -> None:
        """context: whose status it is; None where nobody asks."""
        who: dict[str, Any] = (
            {} if context is None else {name: getattr(context, name) for name in ("uid", "role", "index", "life")}
        )
        self._lock = threading.Lock()
        self._status = InstanceStatus(state="starting", ready=False, **who)

    def update(self, **changes: Any) -> None:
        """Sets fields of InstanceStatus; a new state is logged."""
        with self._lock:
            former = self._status.state
            self._status = InstanceStatus.model_validate(dict(self._status) | changes)
        if self._status.state != former:
            log.info("%s", self._status.state)

    def read(self) -> InstanceStatus:
        """The status now, with the peak memory."""
        return self._status.model_copy(update={"memory_bytes": peak_memory_bytes()})


def peak_memory_bytes() -> int:
    """Peak memory of this process: of its GPU where it uses one, else resident."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    is_initialized = getattr(cuda, "is_initialized", None)  # absent while another thread is still importing torch
    if cuda is not None and is_initialized is not None and is_initialized():
        return int(cuda.max_memory_allocated())
    return resident_peak_bytes()


def resident_peak_bytes() -> int:
    """Peak resident memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
