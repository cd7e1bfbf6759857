"""One role instance as a process of this machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

LIFE_VARIABLE = "ALIGNMENT_LIFE"
"""Names the life in its processes' environment, which children inherit: so they are found when their parent is gone."""
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class RoleProcess(Protocol):
    """A role that runs, or has run."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs, or was not asked."""

    def poll(self) -> int | None:
        """Asks, and returns its exit code."""

    def wait(self) -> object:
        """Waits for its end."""


def start(command: list[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Starts `command` in a session of its own: Ctrl-C in the terminal is the parent's to handle, not the role's.

    When the parent is killed, the kernel asks the process to go (SIGTERM: it saves and exits). Must be called from a
    thread that lives as long as the parent, for the kernel watches the thread.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with(os.getpid()),
        )


def _die_with(parent: int) -> Callable[[], None] | None:
    if _LIBC is None:
        return None

    def in_the_child() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return in_the_child


def started_at(pid: int) -> float | None:
    """A number that tells this process from a later one with the same id; None when it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else float(fields[19])


def descendants(pid: int) -> list[int]:
    """Every process below `pid`: torchrun gives each rank a session of its own."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended while we looked
        children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
    found: list[int] = []
    queue = [pid]
    while queue:
        queue += (below := children.get(queue.pop(), []))
        found += below
    return found


def kill(pid: int) -> None:
    """Ends a process and everything below it at once."""
    for victim in (*descendants(pid), pid):
        send(victim, signal.SIGKILL)


def kill_life(mark: str) -> None:
    """Ends at once every process whose life's mark begins so, whoever is its parent by now."""
    sought = f"{LIFE_VARIABLE}={mark}".encode()
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            found = any(entry.startswith(sought) for entry in file.read_bytes().split(b"\0"))
        except OSError:
            continue  # another user's, or it ended while we looked
        if found and int(file.parent.name) != os.getpid():
            send(int(file.parent.name), signal.SIGKILL)


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal; a process that has ended is fine."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def end_all(pids: list[int], notice_seconds: float) -> None:
    """Asks processes that are not our children to go and kills those that are still there after their notice."""
    known = {pid: started_at(pid) for pid in pids}
    for pid in pids:
        send(pid, signal.SIGTERM)
    deadline = time.monotonic() + notice_seconds
    while living := [pid for pid, started in known.items() if started is not None and started_at(pid) == started]:
        if time.monotonic() >= deadline:
            for pid in living:
                kill(pid)
            return
        time.sleep(0.1)
