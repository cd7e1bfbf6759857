"""Runs examples/ppo.yaml or examples/grpo.yaml with several seeds and tabulates held-out figures before and after.

python benchmarks/online_seeds.py examples/grpo.yaml --seeds 0 1 2

The last line is one JSON object: {"example", "seeds": [{"seed", "seconds", "before", "after"}], "gain": {figure: []}}.
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

from alignment_api.manifest import read_manifest
from alignment_api.status import EvaluationReport
from alignment_api.yaml_text import dump_yaml
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
    return {"seed": seed, "seconds": round(time.monotonic() - began)} | report.model_dump(mode="json")


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
    gain = {f: [round(one["after"][f]["value"] - one["before"][f]["value"], 4) for one in found] for f in figures}
    print(json.dumps({"example": arguments.example.name, "seeds": found, "gain": gain}))


if __name__ == "__main__":
    main()
