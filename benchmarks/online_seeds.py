"""Runs examples/ppo.yaml or examples/grpo.yaml with several seeds and tabulates held-out figures before and after.

python benchmarks/online_seeds.py examples/grpo.yaml --seeds 0 1 2

Of PPO also how much of the returns' variance the critic explained, step by step.

The last line is one JSON object: {"example", "seeds": [{"seed", "seconds", "explained_variance", "before", "after"}],
"gain": {figure: []}}.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from alignment_api.contract.status import EvaluationReport
from alignment_api.yaml.manifest import read_manifest
from alignment_api.yaml.text import dump_yaml
from alignment_operator.local.folder import job_as_json
from alignment_operator.local.sources import local_job

WORK = Path("build") / "online_seeds"


def run(example: Path, seed: int) -> dict[str, Any]:
    """One whole job, through alignctl."""
    job = local_job(read_manifest(example.read_text(), str(example)), example.parent, {})
    training = job.spec.training.model_copy(update={"seed": seed})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"training": training})})
    manifest, folder = WORK / f"{example.stem}-{seed}.yaml", WORK / f"{example.stem}-{seed}"
    WORK.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    manifest.write_text(dump_yaml(job_as_json(job)))
    began = time.monotonic()
    command = [sys.executable, "-m", "alignment_cli.main", "run", str(manifest), "--folder", str(folder)]
    subprocess.run(command, check=True)
    report = EvaluationReport.model_validate_json((folder / "evaluation.json").read_text())
    told = {"seed": seed, "seconds": round(time.monotonic() - began), "explained_variance": explained_variance(folder)}
    return told | report.model_dump(mode="json")


def explained_variance(folder: Path) -> list[float]:
    """Of each step, from the actor's log; none of an algorithm without a critic."""
    lines = [line for log in sorted((folder / "logs").glob("*actor*.log")) for line in log.read_text().splitlines()]
    steps = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return [step["explained_variance"] for step in steps if "explained_variance" in step]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    found = [run(arguments.example, seed) for seed in arguments.seeds]
    figures = sorted(set(found[0]["before"]) & set(found[0]["after"]))
    print("| seed | seconds | figure | before | after |\n|---|---|---|---|---|")
    for one in found:
        for figure in figures:
            before, after = (
                f"{v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]"
                for v in (one["before"][figure], one["after"][figure])
            )
            print(f"| {one['seed']} | {one['seconds']} | {figure} | {before} | {after} |")
    for one in found:
        if one["explained_variance"]:
            shown = " ".join(f"{value:.2f}" for value in one["explained_variance"])
            print(f"explained variance, seed {one['seed']}, step by step: {shown}")
    gain = {f: [round(one["after"][f]["value"] - one["before"][f]["value"], 4) for one in found] for f in figures}
    print(json.dumps({"example": arguments.example.name, "seeds": found, "gain": gain}))


if __name__ == "__main__":
    main()
