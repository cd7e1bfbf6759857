"""Images without a registry: tar archives in the docker-archive format, kept in the cache and imported by nodes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.rig.paths import REPOSITORY, cache_folder
from tests.rig.toolchain import exclusive

PAUSE = "localhost/rig/busybox:1"
BASE = "localhost/rig/base:1"
SUITE = "bookworm"
# What a Dockerfile of ours may copy; a change anywhere else rebuilds nothing.
IMAGE_SOURCES = ("Dockerfile", ".dockerignore", "pyproject.toml", "requirements", "README.md", "LICENSE")
IMAGE_SOURCE_FOLDERS = ("operator", "trainer", "crds")
STORE_BYTES = 8 * 1024**3  # buildah's layers are dropped, all at once, beyond this
KEPT = 3  # archives of one target kept beside the newest
CERTIFICATES = "/etc/ssl/certs"
# buildah remembers blobs below /var/lib/containers, which no setting moves: it sees an overlay that ends with it.
SCRATCH_VAR_LIB = """
mkdir "$1/upper" "$1/scratch"
mount -t overlay overlay -o "lowerdir=/var/lib,upperdir=$1/upper,workdir=$1/scratch" /var/lib
shift
exec "$@"
"""
# A mount and PID namespace of its own: what a builder mounts or leaves running ends with it.
ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def busybox_image() -> Path:
    """Debian's static busybox: the pause container of every pod, and the helper of the volume provisioner."""
    archive = cache_folder() / "image-busybox-2.tar"
    with exclusive(cache_folder() / ".image-busybox.lock"):
        if not archive.exists():
            with tempfile.TemporaryDirectory() as scratch:
                root = Path(scratch)
                (root / "bin").mkdir()
                binary = shutil.copy2(shutil.which("busybox") or "/bin/busybox", root / "bin" / "busybox")
                for applet in ("sh", "mkdir", "rm", "sleep"):
                    (root / "bin" / applet).symlink_to(Path(binary).name)
                write_archive(root, archive, PAUSE, ["/bin/sleep", "2147483647"])
    return archive


def base_image() -> Path:
    """Debian with Python 3.11, its venv and what vLLM links on CPUs, readable by any user; `python` is `python3`."""
    archive = cache_folder() / f"image-base-{SUITE}-4.tar"
    with exclusive(cache_folder() / ".image-base.lock"):
        if not archive.exists():
            print(f"rig: making the base image {archive}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
                root = Path(scratch) / "root"
                packages = "--include=python3,python3-venv,libnuma1"
                _checked([*ALONE, "debootstrap", "--variant=minbase", packages, SUITE, str(root)], 900)
                (root / "usr/bin/python").symlink_to("python3")
                for bulk in ("var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale"):
                    shutil.rmtree(root / bulk, ignore_errors=True)
                write_archive(root, archive, BASE, ["/usr/bin/python3"])
    return archive


def write_archive(root: Path, archive: Path, name: str, command: Sequence[str]) -> None:
    """A folder as an image of one layer, written atomically."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        layer = Path(scratch) / "layer.tar"
        with tarfile.open(layer, "w") as tar:
            tar.add(root, arcname=".", filter=_portable)
        digest = hashlib.sha256(layer.read_bytes()).hexdigest()
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Cmd": list(command),
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "history": [{"created_by": "tests/rig"}],  # buildah counts its entries
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        }
        (Path(scratch) / "config.json").write_text(json.dumps(config))
        manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
        (Path(scratch) / "manifest.json").write_text(json.dumps(manifest))
        complete = Path(scratch) / "image.tar"
        with tarfile.open(complete, "w") as tar:
            for part in ("manifest.json", "config.json", "layer.tar"):
                tar.add(Path(scratch) / part, arcname=part)
        complete.rename(archive)


def build_archive(target: str, name: str, build_args: Mapping[str, str] | None = None) -> Path:
    """Build a target of the repository's Dockerfile with buildah; cached by what goes into it."""
    arguments = {"BASE": BASE, **(build_args or {})}
    archive = cache_folder() / f"image-{target}-{_fingerprint(target, name, arguments)}.tar"
    base = base_image()
    with exclusive(cache_folder() / ".buildah.lock"):
        if not archive.exists():
            _buildah_build(target, name, arguments, base, archive)
    return archive


def prove_image(target: str, build_args: Mapping[str, str]) -> None:
    """Build a target whose last step fails where the image cannot do its work. From nothing, and nothing is kept."""
    base = base_image()
    with tempfile.TemporaryDirectory(prefix=".buildah-", dir=cache_folder()) as scratch:
        steps = [_pull(base), _bud(target, f"localhost/{target}", {"BASE": BASE, **build_args})]
        _buildah(steps, Path(scratch) / "store", Path(scratch), 3600)


def _buildah_build(target: str, name: str, arguments: Mapping[str, str], base: Path, archive: Path) -> None:
    """Build with layers kept between builds."""
    store = cache_folder() / "buildah"
    if store.exists() and _bytes_below(store) > STORE_BYTES:
        shutil.rmtree(store)
    with tempfile.TemporaryDirectory(prefix=".buildah-", dir=cache_folder()) as scratch:
        tar = Path(scratch) / "image.tar"
        steps = [_pull(base), _bud(target, name, arguments), ["push", name, f"docker-archive:{tar}:{name}"]]
        _buildah(steps, store, Path(scratch), 1200)
        for outdated in sorted(archive.parent.glob(f"image-{target}-*.tar"), key=lambda tar: tar.stat().st_mtime)[
            :-KEPT
        ]:
            outdated.unlink()
        tar.rename(archive)


def _pull(base: Path) -> list[str]:
    return ["pull", f"docker-archive:{base}"]


def _bud(target: str, name: str, arguments: Mapping[str, str]) -> list[str]:
    """pip inside needs this machine's certificates."""
    settings = {**arguments, "PIP_CERT": f"{CERTIFICATES}/ca-certificates.crt"}
    return [
        *("bud", "--layers", "--isolation=chroot", "--network=host", "--pull-never"),
        *(f"--target={target}", f"--tag={name}", f"--volume={CERTIFICATES}:{CERTIFICATES}:ro"),
        *(f"--build-arg={key}={value}" for key, value in settings.items()),
        str(REPOSITORY),
    ]


def _buildah(steps: Sequence[Sequence[str]], store: Path, scratch: Path, timeout: float) -> None:
    """Each step in namespaces of its own; its images and layers are below `store`. timeout: seconds for one step."""
    config = scratch / "containers.conf"
    config.write_text(f'[network]\nnetwork_config_dir = "{scratch}/networks"\n')  # its default is in /etc
    buildah = ["buildah", f"--root={store}/root", f"--runroot={scratch}/run", "--storage-driver=overlay"]
    for number, step in enumerate(steps):
        aside = scratch / str(number)
        aside.mkdir()
        in_overlay = [*ALONE, "sh", "-euc", SCRATCH_VAR_LIB, "sh", str(aside)]
        _checked(["env", f"CONTAINERS_CONF={config}", *in_overlay, *buildah, *step], timeout)


def _bytes_below(folder: Path) -> int:
    return int(subprocess.run(["du", "-sb", folder], check=True, text=True, capture_output=True).stdout.split()[0])


def _fingerprint(target: str, name: str, arguments: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps([target, name, dict(sorted(arguments.items()))]).encode())
    files = [REPOSITORY / source for source in IMAGE_SOURCES]
    for folder in IMAGE_SOURCE_FOLDERS:
        files += sorted(path for path in (REPOSITORY / folder).rglob("*") if "__pycache__" not in path.parts)
    for file in files:
        if file.is_file():
            digest.update(f"{file.relative_to(REPOSITORY)}\0{file.stat().st_mode:o}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _portable(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out device nodes (a container gets its own /dev), and let every user enter the root."""
    if member.name == ".":
        member.mode = 0o755
    return None if member.isdev() else member


def _checked(command: Sequence[str], timeout: float) -> None:
    done = subprocess.run(command, text=True, capture_output=True, timeout=timeout, env=os.environ)
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-3000:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
