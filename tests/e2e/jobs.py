"""AlignmentJobs on the rig, as a user sees them: apply, wait, look."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.rig import Rig
from tests.tiny import write_model, write_pairs

NAMESPACE = "jobs"
OPERATOR_NAMESPACE = "alignment-system"
LABELS = "alignment.run"
STEPS = 600  # a tiny step takes some 20 ms, and tests look at a job a few times while it trains
CHECKPOINT_EVERY = 50
PPO_STEPS, STEPS_BEFORE_THE_WAIT = 8, 3
PROMPTS_PER_ROLLOUT, COMPLETIONS_PER_PROMPT = 8, 2
JUDGE = """import time
from pathlib import Path

ALLOWED = Path(__file__).with_name("allowed")
seen = 0


def score(completion, row):
    global seen
    seen += 1
    while ALLOWED.exists() and seen > int(ALLOWED.read_text()):
        time.sleep(0.2)
    return 0.0
"""
"""A reward function of weight 0 that judges no more completions than a file beside it allows, while that is there: so
that a PPO job stands still while servers come and go, however fast the machine is."""
STANDSTILL_SECONDS = 600
"""Status changes with every step and every pod; what takes longest in between is a cold import of torch or vLLM."""
WATCH_SECONDS = 5
"""After which a watch of pods ends and is resumed; who stops listening waits for so long."""
SIZES = {"cpu": "100m", "memory": "3Gi"}
"""Three trainers fit the machine of the tests; each import of torch takes half a gigabyte."""


@dataclass(frozen=True)
class Life:
    """One pod that existed at some time."""

    role: str
    index: int
    life: int
    uid: str
    name: str
    node: str


@dataclass
class PodHistory:
    """Every pod of a job that ever was, by watching: what a list at the end would no longer show."""

    lives: dict[str, Life] = field(default_factory=dict)

    def of(self, role: str) -> list[Life]:
        """The lives of a role, oldest first."""
        return sorted((life for life in list(self.lives.values()) if life.role == role), key=lambda life: life.life)

    def doubled(self) -> list[tuple[str, int, int]]:
        """Lives (role, index, life) that more than one pod had: always a fault."""
        seen = [(life.role, life.index, life.life) for life in list(self.lives.values())]
        return sorted({life for life in seen if seen.count(life) > 1})

    def record(self, pod: dict[str, Any]) -> None:
        """How a pod stands; told of every change, up to its end."""
        labels, metadata = pod["metadata"]["labels"], pod["metadata"]
        self.lives[metadata["uid"]] = Life(
            labels[f"{LABELS}/role"],
            int(labels[f"{LABELS}/index"]),
            int(labels[f"{LABELS}/life"]),
            metadata["uid"],
            metadata["name"],
            pod["spec"].get("nodeName", ""),
        )


@dataclass(frozen=True)
class Jobs:
    """The AlignmentJobs of one namespace."""

    rig: Rig
    namespace: str = NAMESPACE

    def apply(self, job: dict[str, Any]) -> None:
        self.rig.apply(job)

    def get(self, name: str) -> dict[str, Any]:
        return self.rig.get("alignmentjob", name, "-n", self.namespace)

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get(name).get("status", {})
        return found

    def pods(self, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.rig.get("pods", "-n", self.namespace, "-l", f"{LABELS}/job={name}")["items"]
        return found

    def logs(self, pod: str) -> str:
        return self.rig.kubectl("logs", pod, "-n", self.namespace)

    def delete(self, name: str) -> None:
        self.rig.kubectl("delete", "alignmentjob", name, "-n", self.namespace, "--wait=false", "--ignore-not-found")

    def wait(self, name: str, what: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The status once it `holds`, however slow the machine.

        Fails with the status, the pods and the operator's log once the job has failed or is over without it, or where
        nothing of its status has changed for STANDSTILL_SECONDS.
        """
        status: dict[str, Any] = {}
        changed = time.monotonic()
        while time.monotonic() - changed < STANDSTILL_SECONDS:
            former, status = status, self.status(name)
            if holds(status):
                return status
            if status.get("phase") in ("Failed", "Complete"):
                break
            if status != former:
                changed = time.monotonic()
            time.sleep(0.5)
        raise AssertionError(f"{name}: {what} did not happen\n{self.report(name, status)}")

    def wait_complete(self, name: str) -> dict[str, Any]:
        return self.wait(name, "completion", lambda status: status.get("phase") == "Complete")

    def kill_operator(self) -> None:
        """SIGKILL, then a fresh pod: a restarted container would wait for kubelet's growing back-off."""
        (pod,) = [
            pod["metadata"]["name"]
            for pod in self.rig.get("pods", "-n", OPERATOR_NAMESPACE)["items"]
            if "deletionTimestamp" not in pod["metadata"]
        ]
        self.rig.kill_container(pod, OPERATOR_NAMESPACE)
        self.rig.kubectl("delete", "pod", pod, "-n", OPERATOR_NAMESPACE, "--wait=true")
        self.rig.kubectl("rollout", "status", "deployment", "-n", OPERATOR_NAMESPACE, "--timeout=240s")

    def objects(self, name: str, kinds: str) -> list[str]:
        """The job's objects of these kinds, as kind/name."""
        found = self.rig.kubectl("get", kinds, "-n", self.namespace, "-l", f"{LABELS}/job={name}", "-o", "name")
        return found.split()

    def await_gone(self, name: str, kinds: str, keep: int, patience: float = 300) -> list[str]:
        """What is left of the job's objects once no more than `keep` are."""
        deadline = time.monotonic() + patience
        while len(left := self.objects(name, kinds)) > keep:
            assert time.monotonic() < deadline, left
            time.sleep(0.5)
        return left

    def report(self, name: str, status: dict[str, Any]) -> str:
        """What one would look at by hand."""
        pods = self.rig.kubectl("get", "pods", "-n", self.namespace, "-o", "wide")
        events = self.rig.kubectl("get", "events", "-n", self.namespace, "--sort-by=.lastTimestamp")
        logs = [f"--- {pod['metadata']['name']}\n{self._tail(pod['metadata']['name'])}" for pod in self.pods(name)]
        operator = self.rig.kubectl(
            "logs", "-n", OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/name=alignment-operator", "--tail=40"
        )
        return "\n".join((json.dumps(status, indent=1), pods, events[-4000:], *logs, "--- operator", operator))

    def _tail(self, pod: str) -> str:
        try:
            return self.rig.kubectl("logs", pod, "-n", self.namespace, "--tail=30")
        except subprocess.CalledProcessError as error:
            return str(error.stderr)

    @contextmanager
    def watching(self, name: str, history: PodHistory | None = None) -> Iterator[PodHistory]:
        """Records every change of the job's pods from now on, in `history` where one is given: by the API's watch, so
        that no pod is missed, however short its life."""
        history = history or PodHistory()
        versions = [""]

        def hear() -> None:
            versions.append(self._hear(name, history, versions.pop()))

        with repeating(hear):
            yield history

    def _hear(self, name: str, history: PodHistory, version: str) -> str:
        """Records for WATCH_SECONDS what follows a version (empty: what is, and what follows); returns the next one."""
        options = {"watch": "1", "labelSelector": f"{LABELS}/job={name}", "allowWatchBookmarks": "true"}
        query = urlencode(options | {"timeoutSeconds": WATCH_SECONDS, "resourceVersion": version})
        try:
            with self.rig.ask(f"/api/v1/namespaces/{self.namespace}/pods?{query}", WATCH_SECONDS + 30) as lines:
                for line in lines:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return ""  # too old
                    if event["type"] != "BOOKMARK":
                        history.record(event["object"])
                    version = event["object"]["metadata"]["resourceVersion"]
        except (OSError, HTTPException):
            time.sleep(1)  # the apiserver is away
        return version


@contextmanager
def repeating(step: Callable[[], object]) -> Iterator[None]:
    """Again and again meanwhile, in a thread of its own."""
    stop = threading.Event()

    def go() -> None:
        while not stop.is_set():
            step()

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=60)


def condition(status: dict[str, Any], kind: str) -> str | None:
    """True, False or Unknown; None where it is not there."""
    return next((c["status"] for c in status.get("conditions", ()) if c["type"] == kind), None)


def checkpoint(status: dict[str, Any]) -> int:
    """Steps of the last verified checkpoint."""
    return int((status.get("checkpoint") or {}).get("step", 0))


def dpo_job(name: str, **spec: Any) -> dict[str, Any]:
    """A small DPO job over the claims `models`, `data` and `work`; `spec` replaces whole keys."""
    roles = dict.fromkeys(("prepare", "policy", "reference", "evaluator"), SIZES)
    return {
        "apiVersion": "alignment.run/v1alpha1",
        "kind": "AlignmentJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "model": {"source": "pvc://models/tiny"},
            "data": {"source": "pvc://data/pairs.jsonl", "evaluation": {"fraction": 0.2}},
            "algorithm": {"dpo": {}},
            "training": {
                "batchSize": 8,
                "maxSteps": STEPS,
                "learningRate": 3e-4,
                "maxLength": 256,
                "precision": "fp32",
            },
            "roles": roles,
            "checkpoint": {"everySteps": CHECKPOINT_EVERY},
            "storage": {"source": f"pvc://work/{name}"},
            "output": {"destination": f"pvc://work/{name}-out"},
        }
        | spec,
    }


def ppo_job(name: str, **spec: Any) -> dict[str, Any]:
    """A small PPO job of three stages and five roles over the same claims; `spec` replaces whole keys."""
    job = dpo_job(name)
    preferences = {"source": "pvc://data/pairs.jsonl", "evaluation": {"fraction": 0.5}}
    job["spec"] |= {
        "data": {"source": "pvc://data/pairs.jsonl", "evaluation": {"fraction": 0.05}},
        "algorithm": {
            "ppo": {
                "promptsPerRollout": PROMPTS_PER_ROLLOUT,
                "completionsPerPrompt": COMPLETIONS_PER_PROMPT,
                "maxNewTokens": 16,
                "epochsPerRollout": 2,
                "critic": {"learningRate": 1e-3, "warmupSteps": 4},
                "rewards": [
                    {"train": {"preferences": preferences, "learningRate": 1e-3, "batchSize": 16}},
                    {
                        "weight": 0,
                        "function": {
                            "python": {"entrypoint": "judge:score", "path": "pvc://data/code"},
                            "timeoutSeconds": 3600,
                        },
                    },
                ],
            }
        },
        "training": job["spec"]["training"] | {"maxSteps": PPO_STEPS, "learningRate": 1e-4, "maxLength": 128},
        "roles": dict.fromkeys(("prepare", "policy", "actor", "critic", "reference", "reward", "evaluator"), SIZES)
        | {"rollout": SIZES | {"replicas": 2, "kvCacheMemory": "64Mi"}},
        "checkpoint": {"everySteps": 2, "keep": 99},
    }
    job["spec"] |= spec
    return job


@contextmanager
def judging_no_more_than(completions: int, work: Path) -> Iterator[None]:
    """Meanwhile a PPO job's reward function waits before it judges more. work: the folder behind the claim `work`."""
    allowed = work.with_name("data") / "code" / "allowed"
    allowed.write_text(str(completions))
    try:
        yield
    finally:
        allowed.unlink()


def make_claims(rig: Rig, rows: int) -> Path:
    """The claims `models`, `data` and `work` with a tiny model, pairs and a judge; returns the folder of `work`."""
    make_inputs(rig, rows, NAMESPACE, "ReadWriteMany")
    return rig.shared_volume("work", NAMESPACE)


def make_inputs(rig: Rig, rows: int, namespace: str, mode: str) -> None:
    """The claims `models` and `data` with a tiny model, pairs and a judge."""
    write_model(rig.shared_volume("models", namespace, mode) / "tiny")
    data = rig.shared_volume("data", namespace, mode)
    write_pairs(data / "pairs.jsonl", rows)
    (data / "code").mkdir()
    (data / "code" / "judge.py").write_text(JUDGE)
