"""One DPO run by this trainer and by TRL's DPOTrainer: same model, rows, order, dtype and hyper-parameters.

    python benchmarks/dpo_vs_trl.py --model FOLDER [--dtype bf16] [--rows 24] [--data pairs.jsonl]

Each side has a process of its own. Its time runs from raw rows to the last optimizer step: tokenizing, the reference's
log-probs and training count, imports and loading the model do not. Tokens are the same for both: prompt with chosen
plus prompt with rejected, once an epoch. The last line is one JSON object. Needs trl==1.13.* and transformers==5.17.*.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data" / "gsm8k_preferences.jsonl"
MODEL = ROOT / "build" / "models" / "SmolLM2-135M-Instruct"
HYPER = {"learning_rate": 5e-6, "beta": 0.1, "warmup_fraction": 0.0, "max_grad_norm": 1.0, "weight_decay": 0.0}
Report = dict[str, Any]


def ours(options: argparse.Namespace) -> Report:
    """This trainer, by the functions that its policy role calls."""
    import torch

    from alignment_api.contract.spec import AlignmentJobSpec
    from alignment_trainer.checkpoint.run_state import Checkpoints
    from alignment_trainer.data.layouts.preferences import parse_preferences
    from alignment_trainer.data.rows import read_rows
    from alignment_trainer.data.storage import Folder
    from alignment_trainer.data.tokenize import PairTokenizer
    from alignment_trainer.loop.build import Origin, load_trainee, make_run, make_sampler, score_rows
    from alignment_trainer.loop.offline import RunHooks, TrainingRows
    from alignment_trainer.loop.train import train

    spec = AlignmentJobSpec.model_validate(_spec(options))
    policy = load_trainee(spec, Origin(options.model), None, torch.device("cpu"))

    def run() -> list[float]:
        tokenizer = PairTokenizer(policy.model.tokenizer, spec.training.max_length, options.micro_tokens)
        examples = [
            tokenizer.encode(pair)
            for row in islice(read_rows(options.data), options.rows)
            for pair in parse_preferences(row)
        ]
        reference = score_rows(spec, policy.engine, examples)
        with tempfile.TemporaryDirectory() as folder:
            losses = Losses()
            sampler = make_sampler(spec, len(examples))
            rows, checkpoints = TrainingRows(examples, sampler, reference), Checkpoints(Folder(Path(folder)), 1, 1)
            train(make_run(spec, policy, rows, checkpoints, RunHooks(losses)))
        return losses.seen

    return _measure(run)


class Losses:
    """An observer that keeps the losses."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def stepped(self, report: Any) -> None:
        self.seen.append(report.metrics["loss"])
        print(f"step {report.step}: {report.seconds:.1f} s", file=sys.stderr)

    def saved(self, checkpoint: Any) -> None:
        """The last step is saved; its time is part of the run."""


def trl(options: argparse.Namespace) -> Report:
    """TRL's DPOTrainer with its defaults but for what the comparison fixes."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(options.model, trust_remote_code=False)
    order = [index for batch in _batches(options) for index in batch]

    def run() -> list[float]:
        with options.data.open() as file:
            rows = [json.loads(line) for line in islice(file, options.rows)]
        dataset = Dataset.from_list([_as_text(tokenizer, rows[index]) for index in order])
        config = DPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=options.trl_micro_batch,
            gradient_accumulation_steps=options.batch_size // options.trl_micro_batch,
            num_train_epochs=1,
            learning_rate=HYPER["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=0,
            beta=HYPER["beta"],
            max_grad_norm=HYPER["max_grad_norm"],
            weight_decay=HYPER["weight_decay"],
            bf16=options.dtype == "bf16",
            gradient_checkpointing=options.gradient_checkpointing,
            max_length=options.max_length,
            train_sampling_strategy="sequential",
            dataloader_pin_memory=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = DPOTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    return _measure(run)


SIDES: dict[str, Callable[[argparse.Namespace], Report]] = {"ours": ours, "trl": trl}


def _measure(run: Callable[[], list[float]]) -> Report:
    wall, cpu = time.perf_counter(), time.process_time()
    losses = run()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "losses": losses,
    }


def _spec(options: argparse.Namespace) -> dict[str, Any]:
    """The manifest's spec of the same run."""
    return {
        "model": {"source": f"file://{options.model}"},
        "data": {"source": f"file://{options.data}"},
        "algorithm": {"dpo": {"beta": HYPER["beta"]}},
        "training": {
            "batchSize": options.batch_size,
            "microBatchTokens": options.micro_tokens,
            "learningRate": HYPER["learning_rate"],
            "warmupFraction": HYPER["warmup_fraction"],
            "maxGradNorm": HYPER["max_grad_norm"],
            "weightDecay": HYPER["weight_decay"],
            "maxLength": options.max_length,
            "precision": options.dtype,
            "recomputeLayers": 10_000 if options.gradient_checkpointing else 0,
        },
        "checkpoint": {"everySteps": 10**6},
    }


def _batches(options: argparse.Namespace) -> list[tuple[int, ...]]:
    from alignment_trainer.data.sampler import Sampler

    sampler = Sampler(options.rows, options.batch_size, seed=0)
    return [sampler.batch(step) for step in range(sampler.steps_per_epoch)]


def _as_text(tokenizer: Any, row: dict[str, str]) -> dict[str, str]:
    """The prompt as the chat template renders it; TRL closes each completion with the end-of-turn token."""
    turns = [{"role": "user", "content": row["prompt"]}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return {"prompt": prompt, "chosen": row["chosen"], "rejected": row["rejected"]}


def count_tokens(options: argparse.Namespace) -> int:
    """Tokens of prompt with chosen and of prompt with rejected, over all rows."""
    from transformers import AutoTokenizer

    from alignment_trainer.data.layouts.preferences import parse_preferences
    from alignment_trainer.data.rows import read_rows
    from alignment_trainer.data.tokenize import PairTokenizer

    tokenizer = PairTokenizer(
        AutoTokenizer.from_pretrained(options.model, trust_remote_code=False),
        options.max_length,
        2 * options.max_length,
    )
    examples = [
        tokenizer.encode(pair)
        for row in islice(read_rows(options.data), options.rows)
        for pair in parse_preferences(row)
    ]
    return sum(2 * len(example.prompt) + example.group.completion_tokens for example in examples)


def compare(options: argparse.Namespace) -> Report:
    """Runs the sides one after the other."""
    tokens, steps = count_tokens(options), math.ceil(options.rows / options.batch_size)
    report: Report = {
        "dtype": options.dtype,
        "rows": options.rows,
        "batch_size": options.batch_size,
        "gradient_checkpointing": options.gradient_checkpointing,
        "tokens": tokens,
    }
    for side in options.sides.split(","):
        found = _run_side(side)
        found |= {"tokens_per_second": tokens / found["seconds"], "seconds_per_step": found["seconds"] / steps}
        report[side] = {key: [round(v, 6) for v in x] if key == "losses" else round(x, 2) for key, x in found.items()}
        print(f"{side}: {report[side]}", flush=True)
    if {"ours", "trl"} <= report.keys():
        report |= _ratios(report["ours"], report["trl"])
    return report


def _ratios(ours: Report, theirs: Report) -> Report:
    return {
        "speedup": round(ours["tokens_per_second"] / theirs["tokens_per_second"], 2),
        "cpu_speedup": round(theirs["cpu_seconds"] / ours["cpu_seconds"], 2),
        "memory_ratio": round(ours["peak_rss_gb"] / theirs["peak_rss_gb"], 2),
        "largest_loss_difference": max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True)),
    }


def _run_side(side: str) -> Report:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "trainer"), str(ROOT / "operator")]),
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: Report = json.loads(out.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL, help="Hugging Face folder")
    parser.add_argument("--data", type=Path, default=DATA, help="JSON lines of prompt, chosen, rejected")
    parser.add_argument("--rows", type=int, default=24, help="pairs, one epoch of them")
    parser.add_argument("--batch-size", type=int, default=8, help="pairs per optimizer step")
    parser.add_argument("--trl-micro-batch", type=int, default=4, help="pairs that TRL computes at once")
    parser.add_argument("--micro-tokens", type=int, default=8192, help="tokens that this trainer computes at once")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--sides", default="ours,trl", help="comma-separated")
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.model, options.data = options.model.resolve(), options.data.resolve()
    sys.path[:0] = [str(ROOT / "trainer"), str(ROOT / "operator")]
    print(json.dumps(SIDES[options.side](options) if options.side else compare(options)))


if __name__ == "__main__":
    main()
