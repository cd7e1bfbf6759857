"""Attempts of a tiny job's policy that write down the figures of each step, and may end at a told moment.

From the claim to the last checkpoint everything is the trainer's own; rows are random, and their reference is given.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from moments import FileCalls, Moment
from roles import TinyJob
from tiny_runs import Recorder, pairs

from alignment_api.contract.context import Context
from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.algorithms import make_algorithm
from alignment_trainer.checkpoint.attempt import claim_attempt, find_start, let_go, make_checkpoints
from alignment_trainer.checkpoint.checkpoint import Checkpoint
from alignment_trainer.engines import Engine
from alignment_trainer.loop.build import Origin, load_trainee, make_run, make_sampler
from alignment_trainer.loop.offline import Interrupted, Run, RunHooks, StepReport, TrainingRows
from alignment_trainer.loop.train import train
from alignment_trainer.process import distributed
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard

ROWS, BATCH_SIZE, MICRO_TOKENS = 12, 4, 300
KEEP = 3
"""Checkpoints of a job."""
Figures = dict[int, dict[str, float]]
"""Step -> every metric of it and the gradient's norm, to the bit."""


@dataclass(frozen=True)
class Combination:
    """What is trained, and how."""

    algorithm: str
    sharding: str = "none"
    ranks: int = 1
    lora: bool = False

    def __str__(self) -> str:
        return f"{self.algorithm}{' with lora' if self.lora else ''}, {self.sharding} on {self.ranks}"

    def job(self, folder: Path, steps: int, every: int) -> TinyJob:
        """A job of so many steps, with a checkpoint every so many of them."""
        training = {
            "batchSize": BATCH_SIZE,
            "microBatchTokens": MICRO_TOKENS,
            "maxSteps": steps,
            "sharding": self.sharding,
            "weightDecay": 0.01,
        }
        adapters = {"lora": {"rank": 4, "alpha": 8}} if self.lora else {}
        spec = {
            "algorithm": {self.algorithm: {}},
            "training": training | adapters,
            "checkpoint": {"everySteps": every, "keep": KEEP},
        }
        folder.mkdir(parents=True, exist_ok=True)
        return TinyJob(folder, spec=spec, processes=self.ranks)


def instance_of(context: Context) -> Instance:
    """A process of role `policy`, with nobody who asks it."""
    manifest = read_manifest(Path(context.job_file).read_text())
    return Instance(context, manifest, StatusBoard(), Metrics("tiny", "policy"), Interruption())


class Book(Recorder):
    """Writes down the figures of each step in one write, so that a line is whole wherever the process ends."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def stepped(self, report: StepReport) -> None:
        super().stepped(report)
        line = {"step": report.step, "figures": report.metrics | {"gradient_norm": report.grad_norm}}
        os.write(self._file, json.dumps(line).encode() + b"\n")


def book_of(context: Context) -> Path:
    """Where an attempt writes down its figures; beside the storage, since it is no part of the job."""
    return Path(f"{context.storage}.attempt-{context.life}.jsonl")


def figures_of(context: Context) -> Figures:
    """As far as the attempt came."""
    book = book_of(context)
    lines = book.read_text().splitlines(keepends=True) if book.exists() else []
    whole = (json.loads(line) for line in lines if line.endswith("\n"))
    return {line["step"]: line["figures"] for line in whole}


def begin(context: Context, leave_after: int | None = None) -> tuple[Run, Checkpoint | None]:
    """The run of an attempt, and what it starts from; collective. leave_after: a step after which it is asked to go."""
    instance = instance_of(context)
    algorithm, claim = make_algorithm(instance.spec.algorithm), claim_attempt(instance)
    start = find_start(instance, claim)
    folder = Path(context.sources[instance.spec.model.source])
    policy = load_trainee(instance.spec, Origin(folder, algorithm.task), start, torch.device("cpu"))
    let_go(instance, start)

    def stop() -> bool:
        return leave_after is not None and run.position.step >= leave_after

    hooks = RunHooks(Book(book_of(context)) if distributed.rank() == 0 else Recorder(), stop=stop)
    run = make_run(
        instance.spec, policy, _rows(make_sampler(instance.spec, ROWS)), make_checkpoints(instance, claim), hooks
    )
    return run, start.checkpoint if start else None


def _rows(sampler: Any) -> TrainingRows:
    """Random pairs; the reference finds each of 400 tokens as likely."""
    rows = pairs(ROWS)
    lengths = torch.tensor([row.group.trained_lengths for row in rows])
    return TrainingRows(rows, sampler, -math.log(400) * lengths.float())


def lived(context: Context, leave_after: int | None = None) -> Run:
    """The run of an attempt that has come to its end; collective."""
    run, _ = begin(context, leave_after)
    try:
        train(run)
    except Interrupted:
        assert run.position.step == leave_after
    return run


def live(context: str, moments: dict[int, Moment]) -> tuple[list[int], str]:
    """One attempt; the calls on files of the storage, and a checksum of the weights that it ends with (on rank 0).

    moments: rank -> when that process is killed.
    """
    told = Context.model_validate_json(context)
    assert told.storage is not None
    calls = FileCalls(told.storage, moments.get(distributed.rank()))
    calls.watch()
    return calls.sizes, checksum(lived(told).engine)


def in_turn(lives: list[tuple[str, int | None]]) -> None:
    """Several attempts in the same processes: a context, and a step after which it is asked to go."""
    for context, leave_after in lives:
        lived(Context.model_validate_json(context), leave_after)


def checksum(engine: Engine) -> str:
    """Of all weights, on rank 0; collective."""
    digest = hashlib.sha256()
    for name, weight in engine.full_weights():
        if weight is not None:
            digest.update(name.encode() + weight.numpy().tobytes())
    return digest.hexdigest()
