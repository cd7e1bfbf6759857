"""What the ranks of a test do."""

import hashlib
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from online_runs import HereAndNow, OnlineSetting, online_run
from tiny_runs import Setting, tiny_classifier, tiny_engine, tiny_llama, tiny_run, trained_values

from alignment_trainer.algorithms import OFFLINE
from alignment_trainer.checkpoint.run_state import restore
from alignment_trainer.engines.base import Engine
from alignment_trainer.engines.state import SavedState
from alignment_trainer.loop.offline import Run
from alignment_trainer.loop.train import train, train_online
from alignment_trainer.process import distributed

POISONED_ROW = 6


def in_turn(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several runs in the same processes, because starting them costs more than running them."""
    return [resumed(**run) if "checkpoint" in run else trained(**run) for run in runs]


def trained(folder: str, reference: str | None = None, **setting: Any) -> dict[str, Any]:
    """Trains from the beginning. Losses and norms are empty on ranks that report nothing."""
    run, recorder = tiny_run(Path(folder), Setting(**setting), reference=_load(reference))
    Path(folder).mkdir(exist_ok=True)
    torch.save(run.rows.reference, Path(folder) / "reference.pt")
    train(run)
    return _figures(run, recorder)


def resumed(folder: str, checkpoint: str, reference: str, **setting: Any) -> dict[str, Any]:
    """Goes on from a checkpoint, with other weights until it is read."""
    causal = tiny_llama(seed=99)
    engine = tiny_engine(Setting(**setting), causal, SavedState(Path(checkpoint)).weights)
    run, recorder = tiny_run(Path(folder), Setting(**setting), engine, reference=_load(reference))
    run.position = restore(Path(checkpoint), engine)
    train(run)
    return _figures(run, recorder)


def value_models(shardings: list[str]) -> dict[str, dict[str, float]]:
    """Sums of a trained value model's weights, by sharding; on rank 0."""
    found = {}
    for sharding in shardings:
        weights = trained_values(tiny_classifier(), sharding).full_weights()
        found[sharding] = {name: tensor.sum().item() for name, tensor in weights if tensor is not None}
    return found


def online(folder: str, **setting: Any) -> list[dict[str, float]]:
    """Metrics of each step of an online run, with the gradient's norm; none on ranks that report nothing."""
    run, recorder = online_run(Path(folder), OnlineSetting(**setting))
    train_online(run)
    return [report.metrics | {"norm": report.grad_norm} for report in recorder.reports]


def ask_slowly(seconds: float, word_seconds: float = 0.5) -> list[Any]:
    """What rank 0 found after so long, and how many ranks were asked."""
    distributed.WORD_SECONDS = word_seconds
    asked: list[int] = []

    def ask() -> str:
        asked.append(distributed.rank())
        time.sleep(seconds)
        return "found"

    found = distributed.ask_first_rank(ask)
    return [found, int(distributed.sum_over_ranks(torch.tensor(len(asked))))]


def ask_and_die(seconds: float = 1.0) -> None:
    """Rank 0 ends in the middle of what it is asked."""

    def ask() -> None:
        time.sleep(seconds)
        raise RuntimeError("rank 0 is gone")

    distributed.ask_first_rank(ask)


def slow_online(folder: str, seconds: float) -> list[float]:
    """The losses of a run whose rollout servers and rewards take so long."""
    distributed.WORD_SECONDS = 0.5
    run, recorder = online_run(Path(folder), OnlineSetting("ppo", steps=1, epochs=1, sharding="zero2"))
    clients = run.services.clients
    assert isinstance(clients, HereAndNow)
    clients.delays = {"sample 0": seconds, "rewards": seconds}
    train_online(run)
    return [*recorder.losses, *(report.metrics["value_loss"] for report in recorder.reports)]


def golden(runs: list[dict[str, Any]]) -> list[dict[str, list[float]]]:
    """Losses and gradient norms of each run's steps; none on ranks that report nothing."""
    return [_golden(**run) for run in runs]


def _golden(folder: str, algorithm: str, sharding: str) -> dict[str, list[float]]:
    if algorithm in OFFLINE:
        run, recorder = tiny_run(Path(folder), Setting(algorithm=algorithm, sharding=sharding, steps=4))
        train(run)
    else:
        setting = OnlineSetting(
            algorithm=algorithm, sharding=sharding, frozen_sampler=True, value_clip=0.2, reward_scaling="none"
        )
        online_one, recorder = online_run(Path(folder), setting)
        train_online(online_one)
    return {"losses": recorder.losses, "norms": [report.grad_norm for report in recorder.reports]}


def _load(path: str | None) -> torch.Tensor | None:
    return torch.load(path) if path else None


def _figures(run: Run, recorder: Any) -> dict[str, Any]:
    weights = {name: tensor for name, tensor in run.engine.full_weights() if tensor is not None}
    return {
        "losses": recorder.losses,
        "norms": [report.grad_norm for report in recorder.reports],
        "metrics": [report.metrics for report in recorder.reports],
        "weights": {name: tensor.double().sum().item() for name, tensor in weights.items()},
    }


def poisoned(folder: str, shardings: list[str], **setting: Any) -> dict[str, dict[str, Any]]:
    """By sharding: which steps moved the state of a run with one NaN among its reference values; losses, norms, skips.

    The state is what this rank keeps of it: weights, moments, the count of steps.
    """
    return {
        sharding: _poisoned(Path(folder) / sharding, Setting(sharding=sharding, **setting)) for sharding in shardings
    }


def _poisoned(folder: Path, setting: Setting) -> dict[str, Any]:
    run, recorder = tiny_run(folder, setting)
    run.rows.reference[POISONED_ROW - 1, 0] = torch.nan
    states = [_digest(run.engine)]
    for batch in run.batches():
        for micro in batch.micros:
            run.engine.backward(run.loss(micro))
        run.finish(batch)
        states.append(_digest(run.engine))
    weights = {name: tensor for name, tensor in run.engine.full_weights() if tensor is not None}
    return {
        "moved": [before != after for before, after in pairwise(states)],
        "norms": [report.grad_norm for report in recorder.reports],
        "losses": recorder.losses,
        "skips": asdict(run.position.skips),
        "steps": run.engine.steps,
        "weights": {name: tensor.double().sum().item() for name, tensor in weights.items()},
    }


def _digest(engine: Engine) -> str:
    digest = hashlib.sha256(str(engine.steps).encode())
    for name, state in engine.full_state():
        for tensor in (state.weight, state.exp_avg, state.exp_avg_sq) if state is not None else ():
            digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
