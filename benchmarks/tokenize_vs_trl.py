"""Preference rows to tokens, by `prepare` and by TRL's DPOTrainer: the same file, tokenizer and chat template.

    python benchmarks/tokenize_vs_trl.py [--rows 20000] [--model FOLDER] [--data pairs.jsonl] [--without-trl]

Rows are those of the file, again and again with a number before each prompt. Ours are read, checked, rendered,
tokenized, split and written, as `prepare` does it; TRL's are read and go through the data set preparation of
its DPOTrainer with a process a core, no trainer around it. Each side has a process of its own; imports do not count.
The last line is one JSON object. Needs trl==1.16.*.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "gsm8k_preferences.jsonl"
MODEL = ROOT / "build" / "models" / "SmolLM2-135M-Instruct"
MAX_LENGTH = 4096


def ours(options: argparse.Namespace) -> int:
    from transformers import AutoTokenizer

    from alignment_api.contract.spec import AlignmentJobSpec
    from alignment_api.contract.status import ModelReport, PrecisionReport
    from alignment_trainer.data.finding import DataSources
    from alignment_trainer.data.preparation import Request, preferences, prepare_rows
    from alignment_trainer.data.prepared import Manifest, write_prepared
    from alignment_trainer.data.sources import Resolved
    from alignment_trainer.data.spool import spool_in
    from alignment_trainer.data.storage import Folder
    from alignment_trainer.process.metrics import Metrics

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    spec = AlignmentJobSpec.model_validate(
        {
            "model": {"source": f"file://{options.model}"},
            "data": {"source": f"file://{options.data}"},
            "algorithm": {"dpo": {}},
            "training": {"maxLength": MAX_LENGTH},
        }
    )
    request = Request(spec.data, "spec.data", per_step=8)
    sources, form = DataSources(Resolved(options.data), None), preferences(spec, tokenizer)
    model, precision = ModelReport(parameters=1, fingerprint=""), PrecisionReport(value="fp32", why="")
    with tempfile.TemporaryDirectory() as folder, spool_in(Path(folder), form.parts, seed=0) as spool:
        rows = prepare_rows(request, form, sources, spool, Metrics("bench", "prepare"))
        manifest = Manifest(request="", origins={}, data=rows.report, model=model, precision=precision, parts={})
        write_prepared(Folder(Path(folder)), manifest, rows.splits, rows.dropped)
    return rows.report.rows + rows.report.evaluation_rows


def trl(options: argparse.Namespace) -> int:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_length=MAX_LENGTH,
        dataset_num_proc=os.cpu_count(),
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    with options.data.open() as file:
        dataset = Dataset.from_list([_as_chat(json.loads(line)) for line in file])
    side: Any = DPOTrainer.__new__(DPOTrainer)
    side._tokenizer = tokenizer
    return len(side._prepare_dataset(dataset, tokenizer, config, "train"))


SIDES: dict[str, Callable[[argparse.Namespace], int]] = {"ours": ours, "trl": trl}


def _as_chat(row: dict[str, str]) -> dict[str, list[dict[str, str]]]:
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return {field: [{"role": role, "content": row[field]}] for field, role in roles.items()}


def _write_rows(options: argparse.Namespace, target: Path) -> None:
    rows = [json.loads(line) for line in options.data.read_text().splitlines()]
    numbered = enumerate(islice(cycle(rows), options.rows))
    with target.open("w") as file:
        file.writelines(json.dumps(row | {"prompt": f"{n}. {row['prompt']}"}) + "\n" for n, row in numbered)


def _measure(options: argparse.Namespace) -> dict[str, float]:
    """One side, in this process. peak_rss_gb: of the largest of its processes. cpu_seconds: of this one's threads."""
    began, cpu_began = time.perf_counter(), time.process_time()
    rows = SIDES[options.side](options)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {"rows": rows, "seconds": seconds, "cpu_seconds": cpu_seconds, "peak_rss_gb": peak * 1024 / 1e9}


def _run(options: argparse.Namespace, side: str, data: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--side", side, "--model", str(options.model), "--data", str(data)]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(text.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--model", type=lambda path: Path(path).resolve(), default=MODEL)
    parser.add_argument("--data", type=lambda path: Path(path).resolve(), default=DATA)
    parser.add_argument("--without-trl", action="store_true")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(_measure(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data, few = Path(folder) / "rows.jsonl", Path(folder) / "few.jsonl"
        _write_rows(options, data)
        with data.open() as lines:
            few.write_text("".join(islice(lines, 64)))
        found = {}
        for side in ["ours"] if options.without_trl else SIDES:
            _run(options, side, few)  # reads from the disk what both of the next two import
            start = _run(options, side, few)  # imports, and what a start costs
            whole = _run(options, side, data)
            whole["seconds"] -= start["seconds"]
            found[side] = whole
            print(
                f"{side}: {whole['rows']:.0f} rows in {whole['seconds']:.1f} s, {whole['peak_rss_gb']:.2f} GB",
                flush=True,
            )
    minutes = {
        f"{side}_minutes_for_a_million_rows": 1e6 / one["rows"] * one["seconds"] / 60 for side, one in found.items()
    }
    faster = {} if options.without_trl else {"times_faster": found["trl"]["seconds"] / found["ours"]["seconds"]}
    print(json.dumps({"rows": options.rows, "cores": os.cpu_count(), **found, **minutes, **faster}))


if __name__ == "__main__":
    main()
