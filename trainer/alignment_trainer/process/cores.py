"""How many CPU cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Cores by affinity and by the container's CPU limit (cgroup v1 or v2), at least one.

    torch counts the node's cores; in a pod with a limit that many threads only throttle each other.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(affinity, math.ceil(quota))) if quota else affinity


def threads_per_process(processes: int) -> int:
    """Threads for each of so many ranks in this container."""
    return max(1, available_cores() // processes)


def _quota(cgroup: Path) -> float | None:
    """Cores granted per period; None without a limit."""
    try:
        if (cgroup / "cpu.max").is_file():
            granted, period = (cgroup / "cpu.max").read_text().split()
        else:
            granted = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
    except OSError:
        return None
    return None if granted.strip() in ("max", "-1") else int(granted) / int(period)
