"""Seconds a step and memory of this trainer beside TRL's: the same model, rows, order, dtype and hyper-parameters.

    python benchmarks/vs_trl.py [--algorithm dpo] [--data gsm8k|shared] [--dtype fp32] [--lora RANK] [--device cuda]

Each side has a process of its own, and they take their steps in turn, so that whatever else the machine does meets
both. Apart from the steps stand what comes before them (tokenizing, the reference's log-probs) and the checkpoint
after. The first steps are warm-up; the figure is the median of the others, and beside it stands the same with its share
of the reference, which is asked once a pass over the rows. Tokens are counted alike: each completion that is learned
from with its prompt. `gsm8k` is ../shared/data where it is; `shared` are prompts of about 512 tokens with completions
of about 64. The last line is one JSON object. Needs trl==1.16.*.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k_preferences.jsonl"
MODEL = ROOT / "build" / "models" / "SmolLM2-135M-Instruct"
ALGORITHMS = ("dpo", "kto", "orpo", "sft", "reward")
WORDS = ["apple", "river", "stone", "cloud", "bird", "house", "green", "seven", "walk", "light", "paper", "window"]
Report = dict[str, Any]


def pairs(options: argparse.Namespace) -> list[dict[str, str]]:
    """One for each row of each step."""
    wanted = options.steps * options.batch
    if options.data == "shared":
        draw = random.Random(0)
        lengths = {"prompt": 480, "chosen": 60, "rejected": 60}
        return [{key: " ".join(draw.choices(WORDS, k=n)) for key, n in lengths.items()} for _ in range(wanted)]
    if not GSM8K.is_file():
        raise SystemExit(f"no data at {GSM8K}; --data shared needs none")
    return [json.loads(line) for line in GSM8K.read_text().splitlines()[:wanted]]


def rows(options: argparse.Namespace) -> list[Report]:
    """As the algorithm learns from them."""
    found = pairs(options)
    if options.algorithm == "sft":
        return [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in found]
    if options.algorithm == "kto":
        keys = ["chosen" if place % 2 else "rejected" for place in range(len(found))]
        return [
            {"prompt": pair["prompt"], "completion": pair[key], "label": key == "chosen"}
            for pair, key in zip(found, keys, strict=True)
        ]
    return list(found)


class Side:
    """A process that takes one step when it is told to."""

    def __init__(self, name: str, options: Report) -> None:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT / "trainer"), str(ROOT / "operator")]),
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [sys.executable, str(ROOT / "benchmarks" / "vs_trl_sides.py"), name, json.dumps(options)]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)
        self.report = self._heard()
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found = self._heard()
        self.seconds.append(found["step"])
        self.losses.append(found["loss"])

    def end(self) -> None:
        self.report |= self._heard()
        self._process.wait()

    def _heard(self) -> Report:
        """The next line that is one of its reports; other programs write there too."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith('{"'):
                found: Report = json.loads(line)
                return found
        raise SystemExit(f"a side ended with {self._process.wait()}")


def measure(options: argparse.Namespace) -> Report:
    """Both sides, step by step in turn."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows(options)))
        told = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        sides = {name: Side(name, told | {"rows": str(file)}) for name in ("ours", "trl")}
        for step in range(options.steps):
            for side in sides.values():
                side.step()
            print(f"step {step + 1}: " + ", ".join(f"{n} {s.seconds[-1]:.2f} s" for n, s in sides.items()), flush=True)
        for side in sides.values():
            side.end()
    return {name: summary(side, sides["ours"].report["tokens"], options) for name, side in sides.items()}


def summary(side: Side, tokens: list[int], options: argparse.Namespace) -> Report:
    median = statistics.median(side.seconds[options.warm_up :])
    return {
        "step_seconds": round(median, 3),
        "step_seconds_with_reference": round(median + side.report["reference"] / options.steps, 3),
        "tokens_per_second": round(statistics.mean(tokens) / median, 1),
        "tokenizing_seconds": round(side.report["tokenizing"], 2),
        "reference_seconds": round(side.report["reference"], 2),
        "checkpoint_seconds": round(side.report["checkpoint"], 2),
        "peak_gb": round(side.report["peak_gb"], 2),
        "losses": [round(loss, 5) for loss in side.losses],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="dpo")
    parser.add_argument("--data", choices=["gsm8k", "shared"], default="gsm8k")
    parser.add_argument("--model", type=Path, default=MODEL, help="Hugging Face folder")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2, help="steps that are not counted")
    parser.add_argument("--batch", type=int, default=8, help="rows per optimizer step")
    parser.add_argument("--micro-rows", type=int, default=4, help="rows that TRL computes at once")
    parser.add_argument("--micro-tokens", type=int, default=8192, help="tokens that this trainer computes at once")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0: all weights are trained")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    options.model = options.model.resolve()
    found = measure(options)
    ours, theirs = found["ours"], found["trl"]
    ratios = {
        "times_as_fast": round(theirs["step_seconds"] / ours["step_seconds"], 2),
        "times_as_fast_with_reference": round(
            theirs["step_seconds_with_reference"] / ours["step_seconds_with_reference"], 2
        ),
        "memory_ratio": round(ours["peak_gb"] / theirs["peak_gb"], 2),
        "largest_loss_difference": max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)),
    }
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    del settings["model"]
    print(json.dumps({**settings, **found, **ratios}))


if __name__ == "__main__":
    main()
