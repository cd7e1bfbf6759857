"""The two sides of benchmarks/vs_trl.py, each in a process of its own.

Lines of JSON on the standard output: what was fixed cost, each step, at last the checkpoint and the peak of memory. A
step begins when a line has come on the standard input.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BETA = 0.1
RATE = 5e-6
Report = dict[str, Any]


def say(**report: object) -> None:
    print(json.dumps(report), flush=True)


class Gate:
    """Lets one step at a time through, and says how long each took."""

    def __init__(self) -> None:
        self._began = 0.0

    def wait(self) -> None:
        sys.stdin.readline()
        self._began = time.perf_counter()

    def passed(self, loss: float) -> None:
        say(step=time.perf_counter() - self._began, loss=loss)


class GatedSteps:
    """An observer of our loop that lets one step at a time through."""

    def __init__(self, gate: Gate, steps: int) -> None:
        self._gate, self._steps, self.ended = gate, steps, 0.0

    def stepped(self, report: Any) -> None:
        self._gate.passed(report.metrics["loss"])
        if report.step < self._steps:
            self._gate.wait()
        self.ended = time.perf_counter()

    def saved(self, checkpoint: Any) -> None:
        """Its time is measured from the last step to the end."""

    def paused(self, seconds: float, waited: bool) -> None:
        """Part of the same."""


def ours(options: Report) -> None:
    """This trainer, by the functions that its policy role calls."""
    import torch

    from alignment_api.contract.spec import AlignmentJobSpec
    from alignment_trainer.algorithms import make_algorithm
    from alignment_trainer.checkpoint.run_state import Checkpoints
    from alignment_trainer.data.storage import Folder
    from alignment_trainer.engines.scoring import score_sequences
    from alignment_trainer.loop.build import Origin, load_trainee, make_run, make_sampler
    from alignment_trainer.loop.offline import RunHooks, TrainingRows
    from alignment_trainer.loop.train import train

    device = torch.device(options["device"])
    spec = AlignmentJobSpec.model_validate(manifest(options))
    algorithm = make_algorithm(spec.algorithm)
    policy = load_trainee(spec, Origin(Path(options["model"]), algorithm.task), None, device)
    began = time.perf_counter()
    examples = encoded(spec, policy.model.tokenizer, Path(options["rows"]))
    tokenized = time.perf_counter()
    reference = torch.zeros(len(examples), len(examples[0].group.completions))
    if algorithm.needs_reference:
        groups = [example.group for example in examples]
        micro_tokens = options["micro_tokens"]
        reference = score_sequences(policy.engine.forward, algorithm.task.pack, groups, micro_tokens).cpu()
    say(tokenizing=tokenized - began, reference=time.perf_counter() - tokenized, **useful(options, examples))
    with tempfile.TemporaryDirectory() as folder:
        gate = Gate()
        steps = GatedSteps(gate, options["steps"])
        rows, checkpoints = TrainingRows(examples, make_sampler(spec, len(examples)), reference), folder
        gate.wait()
        train(make_run(spec, policy, rows, Checkpoints(Folder(Path(checkpoints)), 1, 1), RunHooks(steps)))
        say(checkpoint=time.perf_counter() - steps.ended, **peak(device))


def manifest(options: Report) -> Report:
    """Its spec."""
    training = {
        "batchSize": options["batch"],
        "microBatchTokens": options["micro_tokens"],
        "learningRate": RATE,
        "warmupFraction": 0.0,
        "maxLength": options["max_length"],
        "maxSteps": options["steps"],
        "precision": options["dtype"],
        "recomputeLayers": 0,
    }
    if options["lora"]:
        training["lora"] = {"rank": options["lora"]}
    return {
        "model": {"source": f"file://{options['model']}"},
        "data": {"source": f"file://{options['rows']}"},
        "algorithm": {options["algorithm"]: {"beta": BETA} if options["algorithm"] in ("dpo", "kto") else {}},
        "training": training,
        "checkpoint": {"everySteps": 10**6},
    }


def encoded(spec: Any, tokenizer: Any, file: Path) -> list[Any]:
    """As `prepare` reads and tokenizes."""
    from alignment_trainer.data.preparation import FORMATS
    from alignment_trainer.data.rows import RawRow

    form = FORMATS[getattr(spec.algorithm, spec.algorithm.name).rows](spec, tokenizer)
    rows = [RawRow(n, f"row {n}", json.loads(line)) for n, line in enumerate(file.read_text().splitlines(), 1)]
    found = form.encoder.encode_each([one for row in rows for one in form.parser.parse(row)])
    wrong = [one for one in found if isinstance(one, Exception)]
    if wrong:
        raise SystemExit(f"{len(wrong)} rows are not read, the first: {wrong[0]}")
    return found


def useful(options: Report, examples: list[Any]) -> Report:
    """Tokens of each step, each completion with its prompt, as both sides have to read them; and the order of rows."""
    from alignment_trainer.data.sampler import Sampler

    sampler = Sampler(len(examples), options["batch"], 0)
    order = [sampler.batch(step) for step in range(options["steps"])]
    learned = 1 if options["algorithm"] in ("kto", "sft") else 2
    tokens = [
        sum(learned * len(examples[i].prompt) + sum(map(len, examples[i].group.completions[:learned])) for i in batch)
        for batch in order
    ]
    return {"tokens": tokens}


def trl(options: Report) -> None:
    """TRL's trainer with its defaults but for what the comparison fixes and what makes it faster."""
    from transformers import TrainerCallback

    gate = Gate()

    class Gated(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_arguments: Any, **_named: Any) -> None:
            gate.wait()

        def on_log(self, _arguments: Any, _state: Any, _control: Any, logs: Report, **_named: Any) -> None:
            if "loss" in logs:
                gate.passed(logs["loss"])

    model, tokenizer = trl_model(options)
    began = time.perf_counter()
    trainer = make_trl(options, model, tokenizer)
    trainer.add_callback(Gated())
    took = time.perf_counter() - began
    say(tokenizing=took - trainer.reference_seconds, reference=trainer.reference_seconds)
    trainer.train()
    ended = time.perf_counter()
    trainer._save_checkpoint(trainer.model, None)
    say(checkpoint=time.perf_counter() - ended, **peak(trainer.accelerator.device))


def trl_model(options: Report) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    folder = options["model"]
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if options["algorithm"] != "reward":
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False), tokenizer
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, trust_remote_code=False
    )
    return model, tokenizer


def make_trl(options: Report, model: Any, tokenizer: Any) -> Any:
    """The trainer, its data set tokenized; where it has a reference, that is asked before the first step."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trainer, config = {
        "sft": (SFTTrainer, SFTConfig),
        "dpo": (DPOTrainer, DPOConfig),
        "kto": (KTOTrainer, KTOConfig),
        "orpo": (ORPOTrainer, ORPOConfig),
        "reward": (RewardTrainer, RewardConfig),
    }[options["algorithm"]]
    compared = {"beta": BETA, "precompute_ref_log_probs": True} if options["algorithm"] in ("dpo", "kto") else {}
    arguments = config(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options["micro_rows"],
        gradient_accumulation_steps=options["batch"] // options["micro_rows"],
        max_steps=options["steps"],
        learning_rate=RATE,
        lr_scheduler_type="cosine",
        warmup_steps=0,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=options["dtype"] == "bf16",
        gradient_checkpointing=False,
        max_length=options["max_length"],
        train_sampling_strategy="sequential",
        dataloader_pin_memory=False,
        use_cpu=options["device"] == "cpu",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **compared,
    )
    from alignment_trainer.data.sampler import Sampler

    rows = [conversation(json.loads(line)) for line in Path(options["rows"]).read_text().splitlines()]
    sampler = Sampler(len(rows), options["batch"], 0)
    order = [place for step in range(options["steps"]) for place in sampler.batch(step)]
    adapters = LoraConfig(r=options["lora"], lora_alpha=options["lora"], target_modules="all-linear")
    return timed(trainer)(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list([rows[place] for place in order]),
        processing_class=tokenizer,
        peft_config=adapters if options["lora"] else None,
    )


def timed(trainer: type[Any]) -> type[Any]:
    """The same, which knows how long it asked the reference."""

    class Timed(trainer):  # type: ignore[misc]
        reference_seconds = 0.0

        def _precompute_ref_logps(self, *arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            found = super()._precompute_ref_logps(*arguments, **named)
            self.reference_seconds += time.perf_counter() - began
            return found

    return Timed


def conversation(row: Report) -> Report:
    """A row as TRL reads it, so that both sides write it by the model's chat template."""
    found = dict(row, prompt=[{"role": "user", "content": row["prompt"]}])
    for key in {"chosen", "rejected", "completion"} & row.keys():
        found[key] = [{"role": "assistant", "content": row[key]}]
    return found


def peak(device: Any) -> Report:
    """GB of this process on a CPU, of the card's memory on a GPU."""
    import torch

    if device.type == "cuda":
        return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


SIDES: dict[str, Callable[[Report], None]] = {"ours": ours, "trl": trl}

if __name__ == "__main__":
    SIDES[sys.argv[1]](json.loads(sys.argv[2]))
