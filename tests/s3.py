"""A real S3 server over a folder: versitygw, built from its pinned Go module."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.rig.paths import RigUnavailable
from tests.rig.toolchain import VERSITYGW, ensure_built

from alignment_trainer.object_store.client import connect

READY_SECONDS = 300


@dataclass(frozen=True)
class S3Server:
    """One server. variables: what a process needs in its environment to be its user. buckets: a folder each."""

    url: str
    buckets: Path
    variables: dict[str, str]


@contextmanager
def running_s3(folder: Path) -> Iterator[S3Server]:
    """With its buckets as folders of `folder`. Raises RigUnavailable where it cannot be built."""
    program, port = ensure_built(VERSITYGW) / "versitygw", _free_port()
    (folder / "buckets").mkdir(parents=True)
    (folder / "sidecar").mkdir()
    keys = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret-of-the-tester"}
    options = ["--access", keys["AWS_ACCESS_KEY_ID"], "--secret", keys["AWS_SECRET_ACCESS_KEY"], "--quiet"]
    address = f"127.0.0.1:{port}"
    backend = ["posix", "--sidecar", str(folder / "sidecar"), str(folder / "buckets")]
    with (folder / "versitygw.log").open("wb") as log:
        process = subprocess.Popen([program, "--port", address, *options, *backend], stdout=log, stderr=log)
    try:
        _wait_until_ready(process, port, folder / "versitygw.log")
        variables = {"AWS_ENDPOINT_URL": f"http://{address}", "AWS_EC2_METADATA_DISABLED": "true"}
        yield S3Server(f"http://{address}", folder / "buckets", variables | keys)
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One for the whole session. Where it cannot be built tests are skipped aloud; in CI they fail."""
    try:
        with running_s3(tmp_path_factory.mktemp("s3")) as server:
            yield server
    except RigUnavailable as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run these tests, and this machine cannot: {reason}")
        pytest.skip(f"NOT RUN: {reason}")


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A new bucket of its own; this process and those that it starts are the server's user."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    variables = s3_server.variables | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{time.monotonic_ns()}"
    connect("bucket").create_bucket(Bucket=name)
    return name


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(log.read_text())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
