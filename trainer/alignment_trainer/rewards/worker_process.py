"""The worker's process as the trainer sees it: started, spoken to, ended."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

GRACE_SECONDS = 2.0
"""Beyond a function's limit until the worker is ended from here: one that has disarmed its alarm."""
_CHUNK_BYTES = 65536
_ENVIRONMENT = (
    *("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "HF_HOME"),
    *("OMP_NUM_THREADS", "OMP_WAIT_POLICY"),
    "ALIGNMENT_LIFE",  # a laptop's mark, by which what a killed run leaves is found
)
"""All that the worker is given of the trainer's environment: where programs and folders are, and how many threads to
use. Not the job's credentials, its Context, nor proxies, whose URLs hold passwords."""


class WorkerLost(Exception):
    """The worker is gone. late: it was ended over a time limit, rather than by itself."""

    def __init__(self, message: str, late: bool) -> None:
        super().__init__(message)
        self.late = late


class Worker:
    """One process with its two pipes; a context manager that leaves nothing of it, whatever its functions started."""

    def __init__(self, functions: Sequence[dict[str, Any]], memory: int, network: bool) -> None:
        """functions: {spec, path} of each. memory: bytes that it may take. network: whether it keeps the network.

        Its first message is {network}: why it has one although it should not, or null. Then comes one for each
        function, up to one with an `error`.
        """
        taken, self._in = os.pipe()
        self._out, given = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "alignment_trainer.rewards.worker", str(taken), str(given)],
            stdin=subprocess.DEVNULL,
            pass_fds=(taken, given),
            start_new_session=True,  # so that what a function has started goes with it
            env=_environment(),
        )
        os.close(taken)
        os.close(given)
        self._unread = b""
        self._say({"memory": memory, "network": network, "functions": list(functions)})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, function: int, seconds: float, answers: Sequence[dict[str, Any]]) -> None:
        """Sends a batch, each of so many seconds at most; `receive` then gives one message for each answer."""
        self._say({"function": function, "seconds": seconds, "answers": list(answers)})

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next message. Raises WorkerLost where none comes within so many seconds, or the worker has ended."""
        end = time.monotonic() + seconds
        while b"\n" not in self._unread:
            if not select.select([self._out], [], [], max(0.0, end - time.monotonic()))[0]:
                self.close()
                raise WorkerLost(f"it gave no answer within {seconds:g} s", late=True)
            chunk = os.read(self._out, _CHUNK_BYTES)
            if not chunk:
                raise self._ended()
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Ends it at once, with whatever it has started. May be called again."""
        if self._in < 0:
            return
        for descriptor in (self._in, self._out):
            os.close(descriptor)
        self._in = self._out = -1
        with suppress(ProcessLookupError):  # it has gone by itself, with all it had started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _ended(self) -> WorkerLost:
        """What became of a worker whose pipe has closed."""
        try:
            code = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            code = 0  # its function has closed every descriptor
        self.close()
        if code == -signal.SIGALRM:
            return WorkerLost("it took longer than its time limit", late=True)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return WorkerLost(f"its process {how}", late=False)

    def _say(self, message: Any) -> None:
        data = (json.dumps(message, default=str) + "\n").encode()
        with suppress(BrokenPipeError):  # `receive` says how it ended
            while data:
                data = data[os.write(self._in, data) :]


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONDONTWRITEBYTECODE": "1"}
