"""Namespaces that hold a machine's worth of processes, and end them all at once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# Ignoring SIGCHLD makes the kernel reap what is orphaned to this first process; it has nothing else to do.
INIT = ("env", "--ignore-signal=CHLD", "sleep", "infinity")
PR_SET_PDEATHSIG = 1


def host_command(*argv: str, timeout: float = 300) -> str:
    """Run to the end; returns stdout. Raises CalledProcessError, with stderr, when it fails."""
    return subprocess.run(argv, check=True, text=True, capture_output=True, timeout=timeout).stdout


class CommandFailed(RuntimeError):
    """A command inside a sandbox failed; the message holds the command and what it said."""


@dataclass
class Daemon:
    """A long-running process inside a sandbox."""

    name: str
    log: Path
    entry: subprocess.Popen[bytes]  # nsenter: it waits in our PID namespace for its only child, the process itself

    @property
    def alive(self) -> bool:
        return self.entry.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        for pid in _children(self.entry.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.entry.wait(timeout=120)

    def tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@dataclass
class Sandbox:
    """A set of namespaces, held by its first process. Ending that process ends everything inside."""

    init: int  # PID as the host sees it
    cgroups: Sequence[Path]
    holder: subprocess.Popen[bytes] | None = None
    daemons: list[Daemon] = field(default_factory=list)
    nested: list[Sandbox] = field(default_factory=list)

    @classmethod
    def unshare(cls, *namespaces: str, cgroups: Sequence[Path], inside: Sandbox | None = None) -> Sandbox:
        """New namespaces, nested in those of `inside`, or else ended by the kernel when the calling thread ends."""
        entry = inside.entry() if inside else ()
        argv = (*entry, "unshare", *namespaces, "--fork", "--kill-child", "--mount-proc", *INIT)
        join = _joiner(cgroups, die_with_parent=inside is None)
        holder = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=join)
        made = cls(_wait_for_init(holder), cgroups, holder)
        if inside:
            inside.nested.append(made)
        return made

    def moved_to_leaf(self) -> Sandbox:
        """cgroup version 2 lets a group have children with controllers only if it holds no process itself."""
        (group,) = self.cgroups
        leaf = group / "init"
        leaf.mkdir()
        for pid in (group / "cgroup.procs").read_text().split():
            (leaf / "cgroup.procs").write_text(pid)
        controllers = (group / "cgroup.controllers").read_text().split()
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in controllers))
        return Sandbox(self.init, [leaf], self.holder)

    def entry(self) -> tuple[str, ...]:
        return ("nsenter", "--target", str(self.init), "--all", "--wdns=/")

    @property
    def alive(self) -> bool:
        return Path(f"/proc/{self.init}/ns/pid").exists()

    def run(self, *argv: str, text_in: str | None = None, timeout: float = 300) -> str:
        """Run a command inside to its end; returns stdout. Raises CommandFailed."""
        done = subprocess.run(
            [*self.entry(), *argv],
            input=text_in,
            text=True,
            capture_output=True,
            timeout=timeout,
            preexec_fn=_joiner(self.cgroups),
        )
        if done.returncode:
            raise CommandFailed(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def spawn(self, name: str, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Daemon:
        """Start a long-running process inside; its output is appended to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            entry = subprocess.Popen(
                [*self.entry(), *argv],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **(env or {})},
                preexec_fn=_joiner(self.cgroups),
                start_new_session=True,  # a terminal's Ctrl-C is not for the cluster
            )
        daemon = Daemon(name, log, entry)
        self.daemons.append(daemon)
        return daemon

    def end(self) -> None:
        """Kill init, and with it everything inside; returns when all of it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self.reap()

    def reap(self) -> None:
        """Collect the exits of everything that we started inside, once init is dead."""
        for sandbox in self.nested:
            sandbox.reap()
        for process in [daemon.entry for daemon in self.daemons] + ([self.holder] if self.holder else []):
            process.wait(timeout=120)


def _joiner(cgroups: Sequence[Path], die_with_parent: bool = False) -> Callable[[], None]:
    """What a child does before exec: enter the cgroups and, where asked, tie its life to its parent's."""
    files = [str(group / "cgroup.procs") for group in cgroups]
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def join() -> None:
        for file in files:
            handle = os.open(file, os.O_WRONLY)
            os.write(handle, b"0")
            os.close(handle)
        if die_with_parent:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    return join


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _wait_for_init(holder: subprocess.Popen[bytes], patience: float = 120) -> int:
    """The host's PID of the process that runs INIT: the only descendant chain below `holder` leads to it."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and holder.poll() is None:
        pid = holder.pid
        while children := _children(pid):
            pid = children[0]
        if Path(f"/proc/{pid}/comm").read_text().strip() == "sleep":
            return pid
        time.sleep(0.01)
    raise RuntimeError(f"unshare did not start: it ended with {holder.poll()}. Namespaces need root and CAP_SYS_ADMIN")
