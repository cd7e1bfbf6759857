"""Trainees that are killed at random moments, until each has gone on to the same end: `make kills`.

PYTHONPATH=operator:trainer:tests/unit/trainer python -m kills [KILLS] [SEED]

Each seed is a run of one combination of algorithm, adapters, engine and ranks; it is killed KILLS_A_RUN times. A moment
is drawn over the whole life of the process: by the clock, by its calls on files of the storage, or by the byte of a
file that it writes. Each attempt must go on from the newest checkpoint that was sealed, with the figures of the run
that nobody disturbed, to the bit, and end with its weights. A run that does not is told with its seed, by which it is
told again (a moment by the clock is as near as the machine's speed). Exit status 1 then.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path

from attempts import KEEP, Combination, Figures, figures_of
from moments import Moment
from ranks import Rank, RankFailed, gang, returned, run_ranks
from roles import LOADED, TinyJob, forkserver

from alignment_api.contract.context import Context
from alignment_trainer.algorithms import OFFLINE
from alignment_trainer.checkpoint.claims import read_claims
from alignment_trainer.data.storage import Folder

STEPS, EVERY = 24, 2
"""Of a run; and between two checkpoints."""
KILLS_A_RUN = 2
ENGINES = (("none", 1), ("fsdp2", 1), ("fsdp2", 2), ("zero2", 1), ("zero2", 2), ("zero3", 1), ("zero3", 2))
COMBINATIONS = tuple(
    Combination(algorithm, sharding, ranks, lora)
    for sharding, ranks in ENGINES
    for lora in (False, True)
    for algorithm in OFFLINE
    if not (lora and sharding.startswith("zero"))  # refused: adapters are not proven with DeepSpeed
)


@dataclass(frozen=True)
class Death:
    """How an attempt is to end: seconds after it was started, all at once, or at a moment of one rank."""

    seconds: float | None = None
    moments: dict[int, Moment] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"after {self.seconds:.3f} s"
        return ", ".join(f"rank {rank} at {moment}" for rank, moment in self.moments.items()) or "never"


@dataclass(frozen=True)
class End:
    """Of an attempt that came to its own end. calls: by rank, as FileCalls.sizes."""

    calls: tuple[list[int], ...]
    weights: str


@dataclass(frozen=True)
class Whole:
    """A run that nobody disturbed."""

    job: TinyJob
    figures: Figures
    end: End
    seconds: float

    def draw(self, draw: random.Random) -> Death:
        """Any moment of it."""
        kind = draw.choice(("clock", "call", "byte"))
        if kind == "clock":
            return Death(seconds=draw.uniform(0, self.seconds))
        rank = draw.randrange(len(self.end.calls))
        sizes = self.end.calls[rank]
        if kind == "call":
            return Death(moments={rank: Moment(draw.randrange(len(sizes)))})
        call = draw.choice([call for call, size in enumerate(sizes) if size])
        return Death(moments={rank: Moment(call, draw.randrange(sizes[call]))})


@dataclass(frozen=True)
class Told:
    """What came of a seed. kills: moments that came before the run's end. failure: empty where it held."""

    seed: int
    combination: Combination
    kills: int
    failure: str


class Difference(AssertionError):
    """A run that was killed is not the run that was not."""


def live(context: Context, death: Death, ranks: int) -> End | None:
    """One attempt; None where it was killed. Raises RankFailed."""
    with gang(ranks, "attempts:live", context=context.model_dump_json(), moments=death.moments) as started:
        if not wait([rank.process.sentinel for rank in started], death.seconds):
            return None
        try:
            ends = returned(started) if not _killed(started) else None
        except RankFailed:
            if not _killed(started):
                raise
            ends = None
    return End(tuple(calls for calls, _ in ends), ends[0][1]) if ends is not None else None


def _killed(started: list[Rank]) -> bool:
    """Whether a signal ended one of them; its peers may have found that and ended by an error."""
    for rank in started:
        rank.process.join(0.1)
    return any((rank.process.exitcode or 0) < 0 for rank in started)


def attempt(whole: Whole, storage: Path, life: int, death: Death) -> End | None:
    """Lives it, and compares it as far as it came. Raises Difference."""
    context = whole.job.context("policy", life=life, storage=str(storage), output=str(storage))
    sealed, claims = newest_sealed(storage), len(read_claims(Folder(storage)))
    end = live(context, death, whole.job.processes)
    made = read_claims(Folder(storage))[claims:]
    first = made[0].start.step + 1 if made and made[0].start else 1
    figures = figures_of(context)
    if made and first - 1 != sealed:
        raise Difference(f"attempt {life} began after step {first - 1}, step {sealed} was sealed")
    if list(figures) != list(range(first, first + len(figures))):
        raise Difference(f"attempt {life} began with step {first} and told of {list(figures)}")
    for step, found in figures.items():
        if found != whole.figures[step]:
            raise Difference(f"attempt {life}, step {step}: {found}, undisturbed {whole.figures[step]}")
    return end


def newest_sealed(storage: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return max((int(path.parent.name) for path in storage.glob("checkpoints/*/*/manifest.json")), default=0)


class Bench:
    """Runs in a folder, and the undisturbed one of each combination, made once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._wholes: dict[Combination, Whole] = {}
        self._locks = {combination: threading.Lock() for combination in COMBINATIONS}

    def whole(self, combination: Combination) -> Whole:
        """The run that nobody disturbs. Raises RankFailed."""
        with self._locks[combination]:
            if combination not in self._wholes:
                self._wholes[combination] = self._make(combination)
            return self._wholes[combination]

    def _make(self, combination: Combination) -> Whole:
        job = combination.job(self._folder / str(COMBINATIONS.index(combination)), STEPS, EVERY)
        context, began = job.context("policy"), time.monotonic()
        end = live(context, Death(), combination.ranks)
        assert end is not None
        return Whole(job, figures_of(context), end, time.monotonic() - began)

    def tell(self, seed: int) -> Told:
        """The run of a seed."""
        combination, storage = COMBINATIONS[seed % len(COMBINATIONS)], self._folder / f"seed-{seed}"
        draw, deaths, lived = random.Random(seed), list[Death](), list[End | None]()
        try:
            whole = self.whole(combination)
            while not lived or lived[-1] is None:
                deaths.append(whole.draw(draw) if len(deaths) < KILLS_A_RUN else Death())
                lived.append(attempt(whole, storage, len(deaths), deaths[-1]))
            compare_ends(whole, storage, lived[-1])
        except Exception:
            killed = "; ".join(map(str, deaths))
            return Told(seed, combination, lived.count(None), f"killed: {killed}\n{traceback.format_exc()}")
        shutil.rmtree(storage)
        return Told(seed, combination, lived.count(None), "")


def compare_ends(whole: Whole, storage: Path, end: End) -> None:
    """The same weights, the newest checkpoints, and nothing else. Raises Difference.

    One that was killed between the last seal and the removal of the oldest leaves that, since nothing is saved after.
    """
    if end.weights != whole.end.weights:
        raise Difference("the last weights are others than the undisturbed run's")
    folders = sorted(storage.glob("checkpoints/*/*"))
    steps = sorted(int(path.name) for path in folders)
    kept = [list(range(STEPS - EVERY * (many - 1), STEPS + 1, EVERY)) for many in (KEEP, KEEP + 1)]
    if steps not in kept:
        raise Difference(f"checkpoints of steps {steps} are left")
    unfinished = [
        *storage.glob("checkpoints/**/.*"),
        *(path for path in folders if not (path / "manifest.json").exists()),
    ]
    if unfinished:
        raise Difference(f"{unfinished} are left")


def tell_all(bench: Bench, first: int, kills: int, side_by_side: int) -> Iterator[Told]:
    """Seeds from the first on, as they end, until so many kills have come."""
    seeds, came = iter(range(first, 2**63)), 0
    with ThreadPoolExecutor(side_by_side) as pool:
        running = {pool.submit(bench.tell, next(seeds)) for _ in range(side_by_side)}
        while running:
            done = next(as_completed(running))
            running.remove(done)
            told = done.result()
            came += told.kills
            if came < kills:
                running.add(pool.submit(bench.tell, next(seeds)))
            yield told


def main(kills: int = 200, seed: int | None = None) -> int:
    """The exit status; a line for each seed."""
    first = random.SystemRandom().randrange(2**32) if seed is None else seed
    came = runs = failed = 0
    began = time.monotonic()
    forkserver.set_forkserver_preload(["attempts", *LOADED])
    os.environ["DS_ACCELERATOR"] = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(1, "time:monotonic")  # who forks the others is there before a life is timed
        for told in tell_all(Bench(Path(folder)), first, kills, os.cpu_count() or 1):
            came, runs, failed = came + told.kills, runs + 1, failed + bool(told.failure)
            what = f"failed, {told.failure}" if told.failure else "held"
            print(f"seed {told.seed}, {told.combination}, killed {told.kills} times: {what}", flush=True)
    print(f"{came} kills in {runs} runs, {failed} failed, {time.monotonic() - began:,.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
