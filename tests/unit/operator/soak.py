"""Histories of a job beyond those of continuous integration, on every core: `make soak`.

python -m tests.unit.operator.soak [HISTORIES] [SEED]

Each process tells a thousand histories under a seed of its own; a failure is shrunk and printed by the process that
found it, and the others go on. The seeds count up from SEED, which is another one each time unless it is given. Exit
status 1 where a history failed.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from tests.rig.paths import REPOSITORY
from tests.unit.operator.test_plan_histories import SOAK

TEST = "tests/unit/operator/test_plan_histories.py"
A_PROCESS = 1_000
"""Histories under one seed: few enough that what hypothesis remembers of them stays small."""


@dataclass(frozen=True)
class Told:
    """What one process told."""

    seed: int
    histories: int
    failure: str
    """Its output, where a history failed; else empty."""


def tell(seed: int, histories: int) -> Told:
    """So many histories under a seed."""
    command = [sys.executable, "-m", "pytest", TEST, "-q", "--timeout=0", "-p", "no:cacheprovider"]
    environment = {**os.environ, SOAK: str(histories)}
    done = subprocess.run(
        [*command, f"--hypothesis-seed={seed}"], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    return Told(seed, histories, "" if done.returncode == 0 else done.stdout + done.stderr)


def soak(histories: int, seed: int, processes: int) -> Iterable[Told]:
    """As they end; processes: side by side."""
    sizes = [min(A_PROCESS, histories - begun) for begun in range(0, histories, A_PROCESS)]
    with ThreadPoolExecutor(processes) as pool:
        for told in as_completed(pool.submit(tell, seed + place, size) for place, size in enumerate(sizes)):
            yield told.result()


def main(histories: int = 100_000, seed: int | None = None) -> int:
    """The exit status; a line for each process that ended."""
    first = random.SystemRandom().randrange(2**32) if seed is None else seed
    held = failed = 0
    began = time.monotonic()
    for told in soak(histories, first, os.cpu_count() or 1):
        held += 0 if told.failure else told.histories
        failed += bool(told.failure)
        what = f"failed\n{told.failure}" if told.failure else "held"
        print(f"seed {told.seed}: {told.histories} {what}", flush=True)
        print(f"{held:,} of {histories:,} held, {failed} seeds failed, {time.monotonic() - began:,.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
