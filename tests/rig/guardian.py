"""The process that outlives a test run just long enough to remove every trace of its rig.

    tests (or a person's shell)
      └─ guardian          holds the slot's lock; watches its parent
           └─ unshare ─ init    first process of the rig's PID, mount, network, IPC and cgroup namespaces

Everything else of the rig runs inside those namespaces. When init dies the kernel kills all of it and drops its
mounts, links and firewall rules, so no list of processes has to be kept and none can be wrong. init dies with the
guardian (PR_SET_PDEATHSIG), and the guardian ends it when the tests close the pipe or die, SIGKILL included.
What a kernel does not remove, files and empty cgroups, the guardian removes; should it be killed itself, the next
rig (or `python -m tests.rig clean`) does, because the dead slot's lock is free.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.rig.sandbox import Sandbox, host_command
from tests.rig.slots import Slot, all_slots, cgroup_hierarchies, clean_dead_slots, is_cgroup_v2

NAMESPACES = ("--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup")


def take_slot() -> tuple[Slot, socket.socket]:
    """The first slot that nobody holds and whose address range the machine does not use."""
    for slot in all_slots():
        lock = slot.lock()
        if lock is not None:
            return slot, lock
    raise SystemExit("every rig slot is in use: end a rig first (`python -m tests.rig clean` removes dead ones)")


def make_cgroups(slot: Slot) -> None:
    for root, group in zip(cgroup_hierarchies(), slot.cgroups(), strict=True):
        group.mkdir()
        if root.name == "cpuset":  # version 1: an empty cpuset accepts no process
            for knob in ("cpuset.cpus", "cpuset.mems"):
                (group / knob).write_text((root / knob).read_text())


def plug_in(slot: Slot, init: int) -> None:
    """A cable from the host into the rig's bridge, so that the host reaches API server, pods and services.

    A dead rig's cable may still be there: the kernel takes a network namespace apart in its own time.
    """
    unplug(slot)
    host_command("ip", "link", "add", slot.link, "type", "veth", "peer", "name", "uplink", "netns", str(init))
    host_command("ip", "address", "add", f"{slot.host_address}/16", "dev", slot.link)
    host_command("ip", "link", "set", slot.link, "up")
    host_command("ip", "route", "add", slot.service_network, "via", slot.gateway, "dev", slot.link)


def unplug(slot: Slot) -> None:
    if Path(f"/sys/class/net/{slot.link}").exists():
        subprocess.run(["ip", "link", "delete", slot.link], capture_output=True, check=False)  # it may go meanwhile


def wait_for_the_end(init: int, parent: int) -> None:
    """Until the pipe is closed, the parent is dead, init is dead, or someone asks politely."""
    watched = [sys.stdin.fileno(), os.pidfd_open(init), parent]
    select.select(watched, [], [])


def main() -> None:
    parent = os.pidfd_open(os.getppid())
    for ignored in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C is for the parent, which then closes the pipe
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    clean_dead_slots()
    slot, lock = take_slot()
    with lock:
        try:
            slot.work.mkdir(parents=True)
            make_cgroups(slot)
            sandbox = Sandbox.unshare(*NAMESPACES, cgroups=slot.cgroups())
            try:
                plug_in(slot, sandbox.init)
                if is_cgroup_v2():
                    sandbox = sandbox.moved_to_leaf()
                cgroups = [str(group) for group in sandbox.cgroups]
                print(json.dumps({"slot": slot.index, "init": sandbox.init, "cgroups": cgroups}), flush=True)
                wait_for_the_end(sandbox.init, parent)
            finally:
                sandbox.end()
                unplug(slot)
        finally:
            slot.clean()


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as failed:
        raise SystemExit(f"{' '.join(failed.cmd)}: {failed.stderr}") from failed
