"""Full gradients of one step, as an engine and any number of ranks find them.

`python tests/unit/trainer/gradients.py` prints what bf16 costs (docs/benchmarks.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ranks import run_ranks
from tiny_runs import Recorder, Setting, offline, pairs, tiny_engine, tiny_run

from alignment_trainer.algorithms import ScoredRows
from alignment_trainer.checkpoint.run_state import Checkpoints
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.storage import Folder
from alignment_trainer.engines.base import ADAM_BETAS, Engine
from alignment_trainer.loop.offline import Learner, LoopOptions, Run, RunHooks, TrainingRows
from alignment_trainer.process import distributed

Gradient = dict[str, torch.Tensor]
ALGORITHMS = ("dpo", "reward")
ALL = 10**6
SHARDED = ("fsdp2", "zero2", "zero3")
ENGINES = {1: ("none", *SHARDED), 2: SHARDED, 3: SHARDED}
SHAPES = {1: ((5, 1), (5, 150), (5, ALL)), 2: ((5, 1), (5, ALL)), 3: ((5, 1), (5, ALL), (2, ALL))}
"""Ranks -> rows of the step, tokens of a micro-batch: a row at a time, a few, all of a rank's share.

Neither 2 nor 3 ranks share 5 rows evenly; of 2 rows a third rank has none.
"""
RECOMPUTED = {1: 1, 150: 2, ALL: 0}
"""Tokens of a micro-batch -> how many of the two layers are recomputed in its backward pass."""
UNCLIPPED = 1e9


def case_names(ranks: int) -> list[str]:
    return [
        f"{algorithm}, {rows} rows, {sharding} on {ranks}, {tokens} tokens"
        for algorithm in ALGORITHMS
        for rows, tokens in ((2, ALL), *SHAPES[ranks])[ranks > 1 :]
        for sharding in ENGINES[ranks]
    ]


def compute(ranks: int, folder: Path, precision: str = "fp32") -> dict[str, Gradient]:
    """Every case of so many ranks, by name."""
    run_ranks(ranks, "gradients:write_cases", folder=str(folder), count=ranks, precision=precision)
    return {name: torch.load(folder / f"{name}.pt") for name in case_names(ranks)}


def compute_all(folder: Path) -> dict[str, Gradient]:
    """The gangs run side by side: most of their time goes into starting."""
    with ThreadPoolExecutor(len(ENGINES)) as starting:
        parts = list(starting.map(lambda ranks: compute(ranks, folder), ENGINES))
    return {name: gradient for part in parts for name, gradient in part.items()}


def write_cases(folder: str, count: int, precision: str) -> None:
    for name in case_names(count):
        algorithm, rows, sharding, tokens = name.split(", ")
        setting = Setting(
            algorithm=algorithm,
            sharding=sharding.split()[0],
            precision=precision,
            rows=int(rows.split()[0]),
            batch_size=int(rows.split()[0]),
            micro_tokens=int(tokens.split()[0]),
            recompute=RECOMPUTED[int(tokens.split()[0])],
            max_grad_norm=UNCLIPPED,
            weight_decay=0.0,
            steps=1,
        )
        gradient = of_step(Path(folder) / name, setting)
        torch.save(gradient, Path(folder) / f"{name}.pt.{distributed.rank()}")
    _join(Path(folder), count)


def _join(folder: Path, ranks: int) -> None:
    """Each rank kept some parameters; the first one puts them together."""
    distributed.barrier()
    if distributed.rank() == 0:
        for name in case_names(ranks):
            parts = [torch.load(folder / f"{name}.pt.{rank}") for rank in range(ranks)]
            torch.save({key: value for part in parts for key, value in part.items()}, folder / f"{name}.pt")


def of_step(folder: Path, setting: Setting) -> Gradient:
    """By the loop's own code, of the parameters that this rank keeps."""
    run, _ = tiny_run(folder, setting, reference=reference(setting.rows))
    batch = next(iter(run.batches()))
    for micro in batch.micros:
        run.engine.backward(run.loss(micro))
    return taken(run.engine)


@dataclass(frozen=True)
class Step:
    """loss: as the first rank reports it; NaN on others. tokens: that were computed, over all ranks."""

    loss: float
    tokens: int
    gradient: Gradient


def of_rows(folder: Path, name: str, rows: TrainingRows, micro_tokens: int) -> Step:
    """The first step over such rows, by the loop's own code, on as many ranks as there are."""
    sharding = "none" if distributed.world_size() == 1 else "fsdp2"
    setting, recorder = Setting(name, sharding, max_grad_norm=UNCLIPPED, weight_decay=0.0), Recorder()
    run = Run(
        Learner(tiny_engine(setting), offline(name)),
        rows,
        LoopOptions(micro_tokens, 1, lambda step: 0.0, 10**9, 10**9),
        Checkpoints(Folder(folder), 1, 1),
        RunHooks(recorder),
    )
    batch = next(iter(run.batches()))
    for micro in batch.micros:
        run.engine.backward(run.loss(micro))
    run.finish(batch)
    return Step(recorder.losses[0] if recorder.losses else math.nan, batch.tokens, _of_first_step(run.engine))


def reference(rows: int) -> torch.Tensor:
    """Not the policy's own, so that margins, and with them the weights of rows, differ."""
    return -20 - 10 * torch.rand(rows, 2, generator=torch.Generator().manual_seed(1))


def taken(engine: Engine) -> Gradient:
    """By taking the step, at a rate of 0."""
    engine.step(0.0)
    return _of_first_step(engine)


def _of_first_step(engine: Engine) -> Gradient:
    """Adam's first moment after it is the gradient times 1 - beta."""
    return {name: state.exp_avg / (1 - ADAM_BETAS[0]) for name, state in engine.full_state() if state is not None}


def unshared(setting: Setting) -> Gradient:
    """The same step with the prompt computed anew for each completion, in plain torch."""
    engine, algorithm = tiny_engine(setting), offline(setting.algorithm)
    rows = pairs(setting.rows)
    groups = [PromptGroup(row.prompt, (completion,)) for row in rows for completion in row.group.completions]
    packed = algorithm.task.pack(groups)
    scores = packed.sum_per_sequence(engine.forward(packed)).view(len(rows), 2)
    given = reference(setting.rows) if algorithm.needs_reference else torch.zeros(len(rows), 2)
    lengths = torch.tensor([row.group.trained_lengths for row in rows])
    engine.backward(algorithm.loss(ScoredRows(scores, given, lengths)).loss.mean())
    return taken(engine)


def difference(ours: Gradient, theirs: Gradient) -> float:
    """L2 norm of the difference of whole gradients, relative to that of `theirs`."""
    assert ours.keys() == theirs.keys()
    off = sum((ours[name].double() - theirs[name].double()).square().sum() for name in theirs)
    size = sum(theirs[name].double().square().sum() for name in theirs)
    return float((off / size).sqrt())


def main(ranks: Sequence[int] = (1, 2, 3)) -> None:
    found: dict[str, dict[str, Any]] = {}
    with TemporaryDirectory() as scratch:
        exact = compute(1, _folder(scratch, "fp32"))
        for count in ranks:
            found |= compute(count, _folder(scratch, f"bf16 on {count}"), "bf16")
    for name, gradient in found.items():
        algorithm, rows, _, _ = name.split(", ")
        plain = f"{algorithm}, {rows}, none on 1, {ALL} tokens"
        print(
            f"{name}: {difference(gradient, found[plain]):.1e} from plain bf16, "
            f"{difference(gradient, exact[plain]):.1e} from fp32"
        )


def _folder(scratch: str, name: str) -> Path:
    folder = Path(scratch) / name
    folder.mkdir()
    return folder


if __name__ == "__main__":
    main()
