"""A tiny job in a folder, and its roles as the processes that a runtime would start."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.tiny import write_model, write_pairs

from alignment_api.contract.context import CONTEXT_VARIABLE, Context, Outcome
from alignment_trainer.main import main
from alignment_trainer.process.launch import RANK_OUTCOMES

ROOT = Path(__file__).parents[3]
STAGES = {"prepare": "prepare", "evaluator": "evaluate"}
"""Role -> its stage in these tests, where that is not `train`; a reference serves any stage alike."""
Peers = tuple[str, ...] | dict[str, tuple[str, ...]]
forkserver = multiprocessing.get_context("forkserver")
LOADED = (
    "alignment_trainer.preload",
    "transformers.models.llama.modeling_llama",
    "boto3",
    "pytest",
    "deepspeed",
    "setuptools",
    "functorch.compile",
    "deepspeed.runtime.zero.muon.original_muon",
)
"""What a forked role or rank finds loaded; from `deepspeed` on what ZeRO loads late, 2 s of a core in each rank."""
forkserver.set_forkserver_preload(list(LOADED))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float = 900) -> None:
    """Raises TimeoutError where the condition does not come true in time, which is far from any speed."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"still not so after {seconds} s")
        time.sleep(0.02)


@dataclass
class TinyJob:
    """A DPO job over a tiny random model, its data and its storage in one folder."""

    folder: Path
    rows: int = 80
    spec: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    ports: dict[str, int] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    """What its forked roles have in theirs besides."""

    def __post_init__(self) -> None:
        write_model(self.folder / "model")
        write_pairs(self.folder / "pairs.jsonl", self.rows)
        (self.folder / "token").write_text("secret\n")
        self.write_spec()

    def write_spec(self) -> None:
        spec: dict[str, Any] = {
            "model": {"source": f"file://{self.folder}/model"},
            "data": {"source": f"file://{self.folder}/pairs.jsonl", "evaluation": {"fraction": 0.2}},
            "algorithm": {"dpo": {"beta": 0.1}},
            "training": {
                "batchSize": 8,
                "learningRate": 3e-3,
                "precision": "fp32",
                "maxLength": 128,
                "microBatchTokens": 512,
                "recomputeLayers": 1,
            },
            "checkpoint": {"everySteps": 2},
        }
        for key, value in self.spec.items():
            spec[key] = spec[key] | value if key in spec and key != "algorithm" else value
        job = {
            "apiVersion": "alignment.run/v1alpha1",
            "kind": "AlignmentJob",
            "metadata": {"name": "tiny"},
            "spec": spec,
        }
        (self.folder / "job.yaml").write_text(json.dumps(job))

    def port(self, server: str) -> int:
        return self.ports.setdefault(server, free_port())

    def url(self, server: str) -> str:
        return f"http://127.0.0.1:{self.port(server)}"

    def context(
        self,
        role: str,
        name: str | None = None,
        peers: Peers = (),
        **fields: Any,
    ) -> Context:
        """name: of the server, where a role has several. peers: URLs by role, or those of references.

        fields: of the context, in place of what they are here.
        """
        sources = {f"file://{self.folder}/{name}" for name in ("model", "pairs.jsonl")}
        sources |= {f"file://{path}" for path in self.folder.iterdir()}
        return Context.model_validate(
            {
                "job": "tiny",
                "uid": "uid-1",
                "stage": STAGES.get(role, "train"),
                "role": role,
                "index": 0,
                "life": 1,
                "replicas": 1,
                "processes": self.processes if role in ("policy", "actor", "critic") else 1,
                "gpus": 0,
                "job_file": str(self.folder / "job.yaml"),
                "storage": str(self.folder / "run"),
                "output": str(self.folder / "run"),
                "sources": {source: source.removeprefix("file://") for source in sources},
                "peers": peers if isinstance(peers, dict) else {"reference": peers} if peers else {},
                "host": "127.0.0.1",
                "port": self.port(name or role),
                "token_file": str(self.folder / "token"),
                "outcome_file": str(self.outcome_file(name or role)),
                "rendezvous": f"127.0.0.1:{self.port('gang')}",
                "notice_seconds": 30,
                "scratch": str(self.folder / "scratch"),
            }
            | fields
        )

    def outcome_file(self, name: str) -> Path:
        return self.folder / f"{name}.outcome"

    def outcome(self, name: str) -> Outcome:
        return Outcome.model_validate_json(self.outcome_file(name).read_text())

    def fork(self, role: str, **of_context: Any) -> Any:
        """The role in a process that has the imports already; its `exitcode` is what a runtime would see."""
        text = self.context(role, **of_context).model_dump_json()
        arguments = (text, str(self.folder / f"{role}.log"), self.environment)
        process = forkserver.Process(target=_run_main, args=arguments, daemon=True)
        process.start()
        return process

    def fork_ranks(self, role: str) -> list[Any]:
        """The ranks that torchrun would execute, forked: each loads torch and transformers else, 7 s of a core."""
        text, outcomes = self.context(role).model_dump_json(), self.folder / f"{role}-outcomes"
        outcomes.mkdir()
        gang = {
            RANK_OUTCOMES: str(outcomes),
            "WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        ranks = []
        for number in map(str, range(self.processes)):
            environment = self.environment | gang | {"RANK": number, "LOCAL_RANK": number}
            arguments = (text, str(self.folder / f"{role}.log"), environment)
            ranks.append(forkserver.Process(target=_run_main, args=arguments, daemon=True))
            ranks[-1].start()
        return ranks

    def start(self, role: str, **of_context: Any) -> subprocess.Popen[bytes]:
        """The role as a runtime starts it."""
        path = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer")])
        # A newer runtime says more than a role knows.
        context = json.dumps(self.context(role, **of_context).model_dump(mode="json") | {"newer": 1})
        with (self.folder / f"{role}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "alignment_trainer.main"],
                env=os.environ | {CONTEXT_VARIABLE: context, "PYTHONPATH": path},
                stderr=log,
            )


def _run_main(context: str, log: str, environment: dict[str, str]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    os.environ.update(environment | {CONTEXT_VARIABLE: context})
    main()
