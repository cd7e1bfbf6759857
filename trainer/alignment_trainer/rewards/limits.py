"""What the worker takes from itself before it runs a function: memory, core dumps, privileges and, where the kernel
lets it, the network.

Limits, not walls: a function runs as the trainer's user and sees the files that it sees.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import sys
from pathlib import Path

_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def limit_memory(size: int) -> None:
    """Writable private memory, in bytes, for this process and for each that it starts; no core dumps.

    RLIMIT_DATA, not RLIMIT_AS: torch maps 2.5 GiB that it never writes, and CUDA reserves addresses by the 100 GiB.
    Where a machine runs out all the same, this process is the first that its kernel ends.
    """
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # no Linux
        Path("/proc/self/oom_score_adj").write_text("1000")


def drop_privileges() -> None:
    """No program that it starts has more rights than it has itself."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def leave_network() -> str | None:
    """Goes where there is no network, not even loopback, nor a way to read the trainer's environment.

    A user namespace of its own, which needs no privilege, and a network namespace in it. Must be called while the
    process has one thread. Returns why the kernel refuses: a pod's seccomp profile does (RuntimeDefault).
    """
    user, group = os.geteuid(), os.getegid()
    if _LIBC is None:
        return f"{sys.platform} has no network namespaces"
    if _LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return os.strerror(ctypes.get_errno())
    for file, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with contextlib.suppress(OSError):  # its files stay its own; only their owners' names are lost
            Path(f"/proc/self/{file}").write_text(line)
    return None
