"""A real Prometheus that scrapes what a test starts, and answers queries over the time it took."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from tests.rig.debian import ensure_packages

SCRAPE_EVERY = "300ms"
CONFIG = """\
global: {{scrape_interval: {every}, scrape_timeout: {every}}}
scrape_configs:
  - job_name: pods
    file_sd_configs: [{{files: [{targets}]}}]
"""


class Prometheus:
    """One server with its data in a folder. find: the targets (host:port) there are now, asked a few times a second."""

    def __init__(self, folder: Path, find: Callable[[], set[str]]) -> None:
        self._folder, self._find = folder, find
        self._targets = folder / "targets.json"
        self._stop = threading.Event()
        self._looking = threading.Thread(target=self._look, daemon=True)
        self._began = time.time()
        self.url = f"http://127.0.0.1:{_free_port()}"

    @contextmanager
    def running(self) -> Iterator[Prometheus]:
        """Raises RigUnavailable where Prometheus is not installed and cannot be."""
        ensure_packages({"prometheus": "prometheus"})
        self._write(set())
        config = self._folder / "prometheus.yml"
        config.write_text(CONFIG.format(every=SCRAPE_EVERY, targets=self._targets))
        command = [
            shutil.which("prometheus") or "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--log.level=warn",
        ]
        with (self._folder / "prometheus.log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder)
        try:
            self._wait_until_ready(process)
            self._began = time.time()
            self._looking.start()
            yield self
        finally:
            self._stop.set()
            process.kill()
            process.wait()

    def series(self, query: str) -> list[dict[str, Any]]:
        """What a graph of the query over the time so far shows: {metric, values} of each line."""
        asked = {"query": query, "start": self._began, "end": time.time(), "step": "1s"}
        answer = httpx.get(f"{self.url}/api/v1/query_range", params=asked, timeout=120).json()
        assert answer["status"] == "success", f"{query}: {answer.get('error')}"
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + 300
        while time.monotonic() < end and process.poll() is None:
            try:
                if httpx.get(f"{self.url}/-/ready").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise TimeoutError((self._folder / "prometheus.log").read_text())

    def _look(self) -> None:
        known: set[str] = set()
        while not self._stop.wait(0.2):
            if not (found := self._find()) <= known:
                known |= found
                self._write(known)

    def _write(self, targets: set[str]) -> None:
        """Whole or not at all: Prometheus reads it as soon as it changes."""
        new = self._targets.with_suffix(".new")
        new.write_text(json.dumps([{"targets": sorted(targets)}]))
        new.rename(self._targets)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
