"""Plays the parts that a control plane without nodes lacks: runs the operator, and is the kubelet of its pods."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.rig.cluster import Rig
from tests.rig.paths import REPOSITORY

Found = TypeVar("Found")
Manifest = dict[str, Any]
ROLE = "alignment.run/role"
PLATFORM = """
pools:
  onDemand: {nodeSelector: {pool: onDemand}}
  spot: {nodeSelector: {pool: spot}}
storage: {accessMode: ReadWriteMany}
image: trainer:test
"""
JOB = {
    "apiVersion": "alignment.run/v1alpha1",
    "kind": "AlignmentJob",
    "spec": {
        "model": {"source": "pvc://inputs/model"},
        "data": {"source": "pvc://inputs/pairs.jsonl"},
        "algorithm": {"dpo": {}},
    },
}
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "inputs"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}
CHECKPOINT = {"step": 40, "verifiedAt": "2026-11-24T02:00:00Z"}
DATA = {"format": "preferences", "rows": 400, "evaluationRows": 40, "fingerprint": "d" * 64}
MODEL = {"parameters": 1_000_000, "fingerprint": "e" * 64}
INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 40}
EVALUATED = {"accuracy": INTERVAL, "margin": INTERVAL, "likelierChosen": INTERVAL}
PREPARED = {"result": "succeeded", "data": DATA, "model": MODEL}
TRAINED = {"result": "succeeded", "step": 80, "checkpoint": CHECKPOINT}
SCORED = {"result": "succeeded", "evaluation": {"before": EVALUATED, "after": EVALUATED}}
FAILED = {
    "result": "failed",
    "step": 40,
    "checkpoint": CHECKPOINT,
    "failure": {"reason": "OutOfMemory", "message": "asked for 2 GiB more", "retryable": True},
}


def eventually(look: Callable[[], Found | None], what: str, seconds: float = 300) -> Found:
    """What `look` finds, as soon as it finds something."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s for {what}, found {found!r}")
        time.sleep(0.1)


@dataclass(frozen=True)
class Place:
    """A namespace of its own in the control plane, and what happens in it."""

    rig: Rig
    namespace: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return self.rig.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def create(self, manifest: Manifest) -> None:
        self.kubectl("create", "-f", "-", stdin=json.dumps(manifest))

    def create_job(self, name: str = "dpo", **spec: Any) -> None:
        self.create(JOB | {"metadata": {"name": name}, "spec": JOB["spec"] | spec})  # type: ignore[operator]

    def names(self, kind: str) -> set[str]:
        """Names without their trailing hash, which differs from run to run."""
        return {item["metadata"]["name"].rpartition("-")[0] for item in self.items(kind)}

    def items(self, kind: str) -> list[Manifest]:
        found: list[Manifest] = json.loads(self.kubectl("get", kind, "-o", "json"))["items"]
        return found

    def status(self, name: str = "dpo") -> Manifest:
        found: Manifest = json.loads(self.kubectl("get", "aj", name, "-o", "json")).get("status", {})
        return found

    def condition(self, kind: str, name: str = "dpo") -> Manifest:
        return next((c for c in self.status(name).get("conditions", ()) if c["type"] == kind), {})

    def role(self, role: str) -> Manifest:
        return next(entry for entry in self.status()["roles"] if entry["name"] == role)

    def pods(self, role: str) -> list[Manifest]:
        """Those that a job owns: a guest may carry the same labels."""
        return [pod for pod in self.items("pods") if _is_a_jobs(pod) and pod["metadata"]["labels"][ROLE] == role]

    def pod(self, role: str, life: int = 1) -> Manifest:
        """The pod of one life of a job's role, as soon as it exists."""

        def look() -> Manifest | None:
            lives = (pod for pod in self.pods(role) if pod["metadata"]["labels"]["alignment.run/life"] == str(life))
            return next(lives, None)

        return eventually(look, f"{role}'s life {life}")

    def run(self, role: str, life: int = 1) -> None:
        """The kubelet says that the pod runs and is ready."""
        conditions = [{"type": "Ready", "status": "True"}]
        running = {"name": "trainer", "state": {"running": {}}, **_IMAGE}
        self._set_status(role, life, {"phase": "Running", "conditions": conditions, "containerStatuses": [running]})

    def end(self, role: str, outcome: Manifest, life: int = 1) -> None:
        """The kubelet says that the pod has ended, with this as its termination message."""
        code = 0 if outcome["result"] == "succeeded" else 1
        state = {"terminated": {"exitCode": code, "message": json.dumps(outcome)}}
        ended = {"name": "trainer", "state": state, **_IMAGE}
        phase = "Failed" if code else "Succeeded"
        self._set_status(role, life, {"phase": phase, "containerStatuses": [ended]})

    def reject(self, role: str, node: str, life: int = 1) -> None:
        """The scheduler has chosen a node, and its kubelet turns the pod away."""
        name = self.pod(role, life)["metadata"]["name"]
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        path = f"/api/v1/namespaces/{self.namespace}/pods/{name}/binding"
        self.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(binding))
        said = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no healthy devices present"}
        self._set_status(role, life, said)

    def end_beside(self, role: str, outcome: Manifest, life: int = 1) -> None:
        """The kubelet says that our container has ended, and one that was injected beside it runs on."""
        code = 0 if outcome["result"] == "succeeded" else 1
        state = {"terminated": {"exitCode": code, "message": json.dumps(outcome)}}
        statuses = [
            {"name": "trainer", "state": state, **_IMAGE},
            {"name": "istio-proxy", "state": {"running": {}}, **_IMAGE},
        ]
        self._set_status(role, life, {"phase": "Running", "containerStatuses": statuses})

    def _set_status(self, role: str, life: int, status: Manifest) -> None:
        name = self.pod(role, life)["metadata"]["name"]
        patch = json.dumps({"status": status})
        self.kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)

    def play_to_training(self) -> None:
        """`prepare` ends well; the policy's first pod runs."""
        self.run("prepare")
        self.end("prepare", PREPARED)
        self.run("policy")


def _is_a_jobs(pod: Manifest) -> bool:
    return any(owner["kind"] == "AlignmentJob" for owner in pod["metadata"].get("ownerReferences", ()))


_IMAGE = {"image": "trainer:test", "imageID": "", "ready": True, "restartCount": 0}


class Operator:
    """An operator's process, as from a shell."""

    def __init__(
        self,
        place: Place,
        folder: Path,
        kubeconfig: Path | None = None,
        lease: str | None = None,
        everywhere: bool = False,
    ) -> None:
        """lease: of another name than all others have, so that it works beside them. everywhere: it serves all."""
        self.port = _free_port()
        self.log = folder / f"operator-{self.port}.log"
        program = "from alignment_operator.main import main; main()"
        if lease is not None:
            program = f"from alignment_operator.kube import leadership as l; l.NAMESPACE_LEASE = {lease!r}; {program}"
        self._command = [sys.executable, "-c", program]
        self._arguments = [f"--port={self.port}", f"--kubeconfig={kubeconfig or place.rig.kubeconfig}"]
        self._arguments += [] if everywhere else [f"--namespace={place.namespace}"]
        platform = folder / "platform.yaml"
        if not platform.exists():
            platform.write_text(PLATFORM)
        self._platform = str(platform)
        self.process: subprocess.Popen[bytes] | None = None

    def arguments(self, platform: str | None = None) -> list[str]:
        """Its command line."""
        return [*self._arguments, f"--platform={platform or self._platform}"]

    def start(self, platform: str | None = None) -> None:
        path = os.pathsep.join(str(REPOSITORY / folder) for folder in ("operator", "trainer"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self._command, *self.arguments(platform)],
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
            )

    def kill(self, by: signal.Signals = signal.SIGKILL) -> int:
        """Ends the process; returns its exit code."""
        assert self.process is not None
        self.process.send_signal(by)
        return self.process.wait(timeout=300)

    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.poll() is None

    def is_healthy(self) -> bool:
        """What a readiness probe is told."""
        return self._get("/healthz") is not None

    def is_alive(self) -> bool:
        """What a liveness probe is told."""
        return self._get("/livez") is not None

    def metric(self, line: str) -> float | None:
        """The value of one line of /metrics; None before the process serves it."""
        rows = (self._get("/metrics") or "").splitlines()
        return next((float(row.rpartition(" ")[2]) for row in rows if row.startswith(line + " ")), None)

    def _get(self, path: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
                return str(answer.read().decode())
        except urllib.error.URLError:
            return None

    def errors(self) -> list[Manifest]:
        """What it logged as an error, or as refused."""
        rows = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [row for row in rows if row["levelname"] in ("ERROR", "CRITICAL") or " 403 " in json.dumps(row)]


@contextmanager
def operating(place: Place, folder: Path, **options: Any) -> Iterator[Operator]:
    """An operator that ends with the test, and that must not have logged an error."""
    operator = Operator(place, folder, **options)
    operator.start()
    try:
        yield operator
    finally:
        if operator.is_running():
            operator.kill(signal.SIGTERM)
    assert operator.errors() == []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
