"""Golden losses: what tiny runs of every algorithm found, step by step, kept in tests/golden/losses.

A change that only moves code leaves them as they are. For one that means to alter numbers
`PYTHONPATH=. python tests/unit/trainer/golden.py` writes them anew; the reason belongs into that change's message.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from ranks import run_ranks

FOLDER = Path(__file__).parents[2] / "golden" / "losses"
ALGORITHMS = ("dpo", "reward", "ppo", "grpo")
SHARDINGS = {1: ("none", "fsdp2", "zero2", "zero3"), 2: ("fsdp2", "zero2", "zero3")}
"""Ranks -> engines; plain torch is for one rank."""
Figures = dict[str, list[float]]
"""`losses` and `norms` (of the gradient) of each step."""


def compute(folder: Path) -> dict[str, dict[str, Figures]]:
    """Algorithm -> "<engine> on <ranks>" -> figures, all in fp32."""
    found: dict[str, dict[str, Figures]] = {algorithm: {} for algorithm in ALGORITHMS}
    for ranks, shardings in SHARDINGS.items():
        runs = [
            {"algorithm": algorithm, "sharding": sharding, "folder": str(folder / f"{algorithm}-{sharding}-{ranks}")}
            for sharding in shardings
            for algorithm in ALGORITHMS
        ]
        figures = run_ranks(ranks, "rank_bodies:golden", runs=runs)[0]
        for run, of_run in zip(runs, figures, strict=True):
            found[run["algorithm"]][f"{run['sharding']} on {ranks}"] = of_run
    return found


def read() -> dict[str, dict[str, Figures]]:
    """What is kept."""
    return {algorithm: json.loads(_file(algorithm).read_text()) for algorithm in ALGORITHMS}


def write(found: dict[str, dict[str, Any]]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for algorithm, figures in found.items():
        _file(algorithm).write_text(json.dumps(figures, indent=1) + "\n")


def _file(algorithm: str) -> Path:
    return FOLDER / f"{algorithm}.json"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        write(compute(Path(scratch)))
