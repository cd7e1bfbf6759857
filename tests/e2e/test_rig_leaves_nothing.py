"""A rig ends without a trace, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.rig.fixtures import require_rig
from tests.rig.paths import REPOSITORY

pytestmark = pytest.mark.e2e

# Starts a rig with one node and one pod, says where, and waits to be told how to end.
SCRIPT = """
import sys
from tests.rig import BASE, NodeSpec, Rig
with Rig.start([NodeSpec("solo", "onDemand")]) as rig:
    container = {"name": "c", "image": BASE, "imagePullPolicy": "Never", "command": ["sleep", "1000"]}
    rig.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]}})
    rig.kubectl("wait", "pod/p", "--for=condition=Ready", "--timeout=240s")
    print(rig.slot.index, rig.guardian.pid, flush=True)
    sys.stdin.readline()
    raise RuntimeError("a test died half-way")
"""
SETTINGS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward")
KUBELET_PATHS = (
    "/var/lib/kubelet",
    "/var/log/pods",
    "/var/log/containers",
    "/usr/libexec/kubernetes",
    "/run/containerd",
)
PACKET_COUNTS = re.compile(r"\[\d+:\d+\]|^[#:].*")
NAMELESS = {
    "mounts",
    "rules",
    "namespaces",
    "paths",
    "settings",
}  # nobody else on this machine should change them either
SEEN_WHILE_RUNNING = {"processes", "links", "routes", "cgroups", "folders", "loops"}
Snapshot = dict[str, set[str]]


def lines(*command: str) -> set[str]:
    return set(subprocess.run(command, text=True, capture_output=True, check=True).stdout.splitlines())


def command_lines() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield f"{process.name} {(process / 'cmdline').read_text(errors='replace')}"
        except (FileNotFoundError, ProcessLookupError):
            continue


def snapshot() -> Snapshot:
    """Everything of the machine that a rig touches. It is seen from outside, where nothing of it should show."""
    return {
        "processes": set(command_lines()),
        "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
        "links": lines("ip", "-brief", "link"),
        "routes": lines("ip", "route", "show", "table", "all"),
        "rules": {PACKET_COUNTS.sub("", line) for line in lines("iptables-save")},
        "namespaces": lines("ip", "netns", "list"),
        "cgroups": {str(path) for path in Path("/sys/fs/cgroup").glob("**/alignment-rig-*")},
        "loops": lines("losetup", "--all"),
        "folders": {str(path) for path in Path("/var/lib").glob("alignment-rig-*")},
        "paths": {path for path in KUBELET_PATHS if Path(path).exists()},
        "settings": {f"{name}={Path('/proc/sys', name).read_text()}" for name in SETTINGS},
    }


def traces(before: Snapshot, after: Snapshot, slot: int) -> Snapshot:
    """What bears the slot's name, which no other rig has; of kinds without names, what is new."""
    named = re.compile(rf"alignment-rig-{slot}\b|\brig{slot}\b|\b10\.({88 + slot}|{108 + slot})\.")
    found = {kind: {line for line in after[kind] if named.search(line)} for kind in after.keys() - NAMELESS}
    found |= {kind: after[kind] - before[kind] for kind in NAMELESS}
    return {kind: left for kind, left in found.items() if left}


def gone(before: Snapshot, slot: int, seconds: float = 300) -> bool:
    deadline = time.monotonic() + seconds
    while left := traces(before, snapshot(), slot):
        assert time.monotonic() < deadline, left
        time.sleep(0.3)
    return True


def end_by_exception(script: subprocess.Popen[str], guardian: int) -> None:
    assert script.stdin is not None
    script.stdin.write("now\n")
    script.stdin.close()
    assert script.wait(timeout=300) == 1


def end_by_sigkill(script: subprocess.Popen[str], guardian: int) -> None:
    script.kill()
    script.wait()


def end_with_its_guardian(script: subprocess.Popen[str], guardian: int) -> None:
    os.kill(guardian, signal.SIGKILL)
    script.kill()
    script.wait()
    subprocess.run([sys.executable, "-m", "tests.rig", "clean"], cwd=REPOSITORY, check=True, timeout=300)


@pytest.mark.parametrize("end", [end_by_exception, end_by_sigkill, end_with_its_guardian])
def test_a_rig_leaves_nothing(end: Callable[[subprocess.Popen[str], int], None]) -> None:
    require_rig()
    before = snapshot()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], cwd=REPOSITORY, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as script:
        assert script.stdout is not None
        slot, guardian = map(int, script.stdout.readline().split())
        running = traces(before, snapshot(), slot)
        assert set(running) >= SEEN_WHILE_RUNNING  # the check below can fail
        end(script, guardian)
        assert gone(before, slot)
