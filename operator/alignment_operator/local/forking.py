"""Roles forked from one process that has imported what they need: on a laptop imports would cost more than the work."""

from __future__ import annotations

import importlib
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from multiprocessing.process import BaseProcess
from pathlib import Path

_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""What OpenMP reads when it is loaded, which is before the fork: threads that spin take the cores from other roles."""


@dataclass(frozen=True)
class ForkedProcess:
    """What `subprocess.Popen` is of a process that was executed."""

    child: BaseProcess

    @property
    def pid(self) -> int:
        assert self.child.pid is not None
        return self.child.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self.child.exitcode

    def poll(self) -> int | None:
        return self.child.exitcode

    def wait(self) -> None:
        self.child.join()


class ForkServer:
    """Forks processes that run `module`'s `main()`. preload: a module that imports what all of them need.

    It begins to import at once. When this process ends, however it ends, or lets go of this object, the children are
    asked to go (SIGTERM).
    """

    def __init__(self, module: str, preload: str) -> None:
        self._module = module
        self._context: ForkServerContext = get_context("forkserver")
        self._read_end, self._write_end = self._context.Pipe(duplex=False)
        self._context.set_forkserver_preload([preload])
        before = {name: os.environ.get(name) for name in _ENVIRONMENT}
        os.environ.update({name: value for name, value in _ENVIRONMENT.items() if before[name] is None})
        try:
            ensure_running()
        finally:
            for name in (name for name, value in before.items() if value is None):
                del os.environ[name]

    def start(self, environment: Mapping[str, str], log: Path) -> ForkedProcess:
        """A child with this environment and output, in a session of its own."""
        arguments = (self._module, dict(environment), str(log), self._read_end)
        child = self._context.Process(target=_run, args=arguments)
        child.start()
        return ForkedProcess(child)


def _run(module: str, environment: dict[str, str], log: str, parent: Connection) -> None:
    os.setsid()
    threading.Thread(target=_go_with, args=(parent,), name="parent", daemon=True).start()
    output, nothing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), os.open(os.devnull, os.O_RDONLY)
    for descriptor, stream in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, stream)
    os.environ.clear()
    os.environ.update(environment)
    importlib.import_module(module).main()


def _go_with(parent: Connection) -> None:
    """The other end is the parent's alone: the kernel closes it. A fork server outlives its parent by its children."""
    try:
        parent.recv_bytes()
    except EOFError:
        os.kill(os.getpid(), signal.SIGTERM)
