"""This machine as a platform: one pool by every name, with the machine's GPUs if it has any."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from alignment_api.contract.platform import Gpu, Platform, Pool, Pools

NOTICE_SECONDS = 120
"""What a process gets to save a checkpoint after Ctrl-C. Nobody reclaims a laptop: only patience bounds it."""
BF16_CAPABILITY = 8.0
"""CUDA compute capability from which on bf16 is in hardware (Ampere)."""

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def local_platform() -> Platform:
    """Every pool is this machine."""
    gpus = machine_gpus()
    pool = Pool(gpu=gpus[0] if gpus else None, notice_seconds=NOTICE_SECONDS)
    return Platform(pools=Pools(on_demand=pool, spot=pool, cpu=Pool(notice_seconds=NOTICE_SECONDS)))


def machine_gpus() -> list[Gpu]:
    """The NVIDIA GPUs that a process started here may use, asked of the driver: torch would take seconds."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "" or shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return parse_gpus(answer.stdout) if answer.returncode == 0 else []


def parse_gpus(table: str) -> list[Gpu]:
    """Lines of `name, MiB, compute capability` as GPUs."""
    rows = [line.rsplit(",", 2) for line in table.splitlines() if line.strip()]
    return [
        Gpu(product=name.strip(), memory_gib=int(mebibytes) / 1024, bf16=float(capability) >= BF16_CAPABILITY)
        for name, mebibytes, capability in rows
    ]


def machine_has_bf16() -> bool:
    """Whether the CPU says it multiplies bf16; torch, which decides for a job, takes seconds to ask."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return bool(flags & _BF16_FLAGS) and os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() not in (
        "AVX",
        "AVX2",
        "SSE41",
    )


def available_memory() -> int | None:
    """Bytes that new processes can have without swapping; None where the machine does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limits = (int(path.read_text()) for path in _CGROUP_LIMITS if path.exists() and path.read_text().strip().isdigit())
    return min([free, *limits])
