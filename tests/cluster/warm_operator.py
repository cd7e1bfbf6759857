"""Operators forked from one process that has imported all they need: imports are most of a short life's work."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from threading import Lock

from tests.cluster.operating import Operator, Place

from alignment_operator.local.forking import ForkedProcess, ForkServer
from alignment_operator.main import main as serve

ARGUMENTS = "ALIGNMENT_WARM_OPERATOR"
"""Environment variable of such a process: its command line, in JSON."""


class Warmth:
    """Where they are forked; may be used from several threads."""

    def __init__(self) -> None:
        self._server = ForkServer(__name__, preload=__name__)
        self._lock = Lock()

    def fork(self, arguments: list[str], log: Path) -> ForkedProcess:
        """An operator with this command line."""
        with self._lock:
            return self._server.start({**os.environ, ARGUMENTS: json.dumps(arguments)}, log)


class WarmOperator(Operator):
    """An operator that begins without importing anything; else as from a shell."""

    def __init__(self, warmth: Warmth, place: Place, folder: Path, kubeconfig: Path) -> None:
        super().__init__(place, folder, kubeconfig)
        self._warmth = warmth
        self._forked: ForkedProcess | None = None

    def start(self, platform: str | None = None) -> None:
        self._forked = self._warmth.fork(self.arguments(platform), self.log)

    def kill(self, by: signal.Signals = signal.SIGKILL) -> int:
        assert self._forked is not None
        os.kill(self._forked.pid, by)
        self._forked.wait()
        return self._forked.poll() or 0

    def is_running(self) -> bool:
        return self._forked is not None and self._forked.poll() is None


def main() -> None:
    """Serve, with the command line that the environment names."""
    sys.argv = ["alignment-operator", *json.loads(os.environ[ARGUMENTS])]
    serve()
