"""The Debian packages the rig needs, installed only where they are missing."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.rig.paths import RigUnavailable

CONTROL_PLANE_PACKAGES = {"ip": "iproute2", "nsenter": "util-linux", "openssl": "openssl"}
NODE_PACKAGES = {
    **CONTROL_PLANE_PACKAGES,
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "busybox": "busybox-static",
    "debootstrap": "debootstrap",
    "buildah": "buildah",
    "prometheus": "prometheus",
    f"/usr/lib/{platform.machine()}-linux-gnu/libnuma.so.1": "libnuma1",  # vLLM's CPU build links it
    "/usr/lib/cni/bridge": "containernetworking-plugins",
}
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def ensure_packages(commands: dict[str, str]) -> None:
    """Install the package of every command that is not there. Raises RigUnavailable without root or apt."""
    missing = list(_missing(commands))
    if not missing:
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RigUnavailable(f"missing packages: install {' '.join(missing)}, or run as root on Debian")
    _apt("update", "-qq")
    _apt("install", "-y", "-qq", "--no-install-recommends", *missing)
    if still := list(_missing(commands)):
        raise RigUnavailable(f"apt installed {' '.join(missing)}, but {' '.join(still)} still lacks its command")


def _missing(commands: dict[str, str]) -> Iterable[str]:
    path = f"{os.environ.get('PATH', '')}:{SBIN}"
    return (
        package
        for command, package in commands.items()
        if shutil.which(command, path=path) is None and not (command.startswith("/") and Path(command).exists())
    )


def _apt(*arguments: str) -> None:
    # Runlevel 1 is for maintenance: packages that bring a service, Prometheus say, do not start it there.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    done = subprocess.run(["apt-get", *arguments], env=env, text=True, capture_output=True, timeout=1800)
    if done.returncode:
        raise RigUnavailable(f"apt-get {' '.join(arguments)} failed: {done.stderr.strip()[-1500:]}")
