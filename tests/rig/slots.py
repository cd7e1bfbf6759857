"""Slots: what one running rig owns on the machine, named so that the next one can find and remove it.

A slot's lock is an abstract unix socket. The kernel frees it when its holder dies, however it dies, and it
leaves no file: a slot whose lock can be taken belongs to nobody, and what lies in it is left over.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SLOTS = 8
CGROUP_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Slot:
    """The names and networks of one rig. Slots differ in every one of them, so rigs may run side by side."""

    index: int

    @property
    def work(self) -> Path:
        """Everything the rig writes. On a disk: containerd's snapshots are overlays, which tmpfs serves badly."""
        return Path(f"/var/lib/alignment-rig-{self.index}")

    @property
    def link(self) -> str:
        """The host's end of the cable into the rig's network."""
        return f"rig{self.index}"

    @property
    def gateway(self) -> str:
        """The rig's own address: its nodes, its API server and its DNS."""
        return f"10.{88 + self.index}.0.1"

    @property
    def host_address(self) -> str:
        return f"10.{88 + self.index}.255.254"

    @property
    def pod_network(self) -> str:
        return f"10.{88 + self.index}.0.0/16"

    @property
    def service_network(self) -> str:
        return f"10.{108 + self.index}.0.0/16"

    def pod_range(self, node: int) -> tuple[str, str]:
        """First and last pod address of one node; all nodes share the bridge and its /16."""
        prefix = f"10.{88 + self.index}.{node + 1}"
        return f"{prefix}.2", f"{prefix}.254"

    def cgroups(self) -> list[Path]:
        """This slot's cgroup in every hierarchy: one in version 2, one per controller in version 1."""
        return [root / f"alignment-rig-{self.index}" for root in cgroup_hierarchies()]

    def lock(self) -> socket.socket | None:
        """Take the slot; None when a living rig holds it. Closing the socket, or dying, gives it back."""
        holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            holder.bind(f"\0alignment-operator/rig/{self.index}")
        except OSError:
            holder.close()
            return None
        return holder

    def has_leftovers(self) -> bool:
        return self.work.exists() or any(group.exists() for group in self.cgroups())

    def clean(self, patience: float = 120.0) -> None:
        """Remove cgroups and files. The caller holds the lock, so the slot's namespaces are gone or going."""
        deadline = time.monotonic() + patience
        for group in self.cgroups():
            _remove_cgroup(group, deadline)
        mounted = [mount for mount in _mount_points() if mount.is_relative_to(self.work)]
        if mounted:
            raise RuntimeError(f"not removing {self.work}: still mounted there: {mounted[0]}. Unmount it first")
        if self.work.exists():
            shutil.rmtree(self.work)


def all_slots() -> Iterator[Slot]:
    return (Slot(index) for index in range(SLOTS))


def clean_dead_slots() -> list[Slot]:
    """Remove what dead rigs left; a living rig is never touched. Returns the slots that needed it."""
    cleaned = []
    for slot in all_slots():
        lock = slot.lock() if slot.has_leftovers() else None
        if lock is None:
            continue
        with lock:
            slot.clean()
        cleaned.append(slot)
    return cleaned


def is_cgroup_v2() -> bool:
    return (CGROUP_ROOT / "cgroup.controllers").exists()


def cgroup_hierarchies() -> list[Path]:
    """Roots of the mounted cgroup trees: one in version 2, one for each controller in version 1."""
    if is_cgroup_v2():
        return [CGROUP_ROOT]
    trees = sorted(set(_mount_points()) & set(CGROUP_ROOT.iterdir()))
    return [tree for tree in trees if tree.name != "unified"]  # a hybrid's version 2 tree carries no controller


def _mount_points() -> list[Path]:
    table = Path("/proc/self/mountinfo").read_text()
    return [Path(line.split()[4]) for line in table.splitlines()]


def _remove_cgroup(group: Path, deadline: float) -> None:
    """Remove a cgroup and its children; the last process may need a moment to leave."""
    while group.exists():
        try:
            for child, _, _ in os.walk(group, topdown=False):
                Path(child).rmdir()
        except FileNotFoundError:
            continue
        except OSError as busy:
            if time.monotonic() > deadline:
                raise RuntimeError(f"cgroup {group} is still in use") from busy
            time.sleep(0.05)
