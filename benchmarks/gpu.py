"""DPO steps on a GPU, beside TRL where asked for: random weights of real shapes, rows made here, nothing to fetch.

    PYTHONPATH=operator:trainer python benchmarks/gpu.py [--shapes 135m 1.7b] [--rows gsm8k chat shared] [--trl]

Each case is a process of its own. TFLOP/s: 6 x parameters x packed tokens over the median step, without the reference.
The first step (compilation) stands apart. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VOCABULARY, SEED = 49152, 0
SHAPES = {
    "tiny": (64, 128, 2, 4, 4),
    "135m": (576, 1536, 30, 9, 3),
    "1.7b": (2048, 8192, 24, 32, 32),
}
"""SmolLM2's: hidden size, intermediate size, layers, heads, key-value heads."""


@dataclass(frozen=True)
class Rows:
    """Lengths in tokens, drawn evenly: of prompts, of completions. batch: pairs of a step. pairs: of TRL at once."""

    prompt: tuple[int, int]
    completion: tuple[int, int]
    batch: int
    pairs: int


ROWS = {
    "gsm8k": Rows((40, 150), (50, 165), 64, 4),
    "chat": Rows((52, 340), (105, 420), 32, 4),
    "shared": Rows((512, 512), (64, 64), 32, 4),
    "tiny": Rows((5, 9), (3, 9), 8, 4),
}
"""Like GSM8K (means of 95 and 107 tokens), like chat (UltraFeedback), like long prompts with short answers."""


def token_rows(rows: Rows, steps: int) -> list[dict[str, list[int]]]:
    """prompt, chosen, rejected of each pair."""
    draw = random.Random(SEED)

    def text(lengths: tuple[int, int]) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(*lengths))]

    return [
        {"prompt": text(rows.prompt), "chosen": text(rows.completion), "rejected": text(rows.completion)}
        for _ in range(rows.batch * steps)
    ]


def network(shape: str) -> Any:
    """Random fp32 weights on the device."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    hidden, intermediate, layers, heads, kv_heads = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    torch.manual_seed(SEED)
    with torch.device(device()):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_gb() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Seconds, until the device is done."""
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


@dataclass
class Observed:
    """What the run reports."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def stepped(self, report: Any) -> None:
        self.seconds.append(report.seconds)
        self.losses.append(report.metrics["loss"])

    def saved(self, checkpoint: Any) -> None:
        """Nothing is saved."""


def ours(options: argparse.Namespace) -> dict[str, Any]:
    """This trainer: the reference's log-probs of every step's rows first, then the steps."""
    import torch

    from alignment_api.contract.algorithms import Algorithm, Dpo
    from alignment_trainer.algorithms import make_algorithm
    from alignment_trainer.checkpoint.run_state import Checkpoints
    from alignment_trainer.data.examples import Example, PromptGroup
    from alignment_trainer.data.packing import pack
    from alignment_trainer.data.sampler import Sampler
    from alignment_trainer.data.storage import Folder
    from alignment_trainer.engines import ENGINES, OptimizerOptions
    from alignment_trainer.engines.scoring import score_sequences
    from alignment_trainer.loop.offline import Learner, LoopOptions, Run, RunHooks, TrainingRows
    from alignment_trainer.model.heads import scorer

    def example(number: int, prompt: Any, *completions: Any) -> Example:
        return Example(number, PromptGroup(prompt, completions))

    rows, seen = ROWS[options.rows], Observed()
    made = token_rows(rows, options.steps)
    examples = [example(n, *map(tuple, row.values())) for n, row in enumerate(made, 1)]
    model = scorer(network(options.shape))
    engine = ENGINES["none"](model, OptimizerOptions(0.0, 1.0), options.precision, device())
    sampler, algorithm = Sampler(len(examples), rows.batch, seed=0), make_algorithm(Algorithm(dpo=Dpo()))
    order = [sampler.batch(step) for step in range(options.steps)]
    reference = torch.zeros(len(examples), 2)

    def score(batch: Any) -> None:
        groups = [algorithm.group(examples[index]) for index in batch]
        reference[list(batch)] = score_sequences(engine.forward, pack, groups, options.micro)

    print("model and rows are made", flush=True)
    scored = [timed(lambda batch=batch: score(batch)) for batch in order]
    print("the reference is scored", flush=True)
    run = Run(
        Learner(engine, algorithm),
        TrainingRows(examples, sampler, reference),
        LoopOptions(options.micro, options.steps, lambda step: 5e-6, 10**9, 10**9),
        Checkpoints(Folder(Path(tempfile.gettempdir())), 1, 1),
        RunHooks(seen),
    )
    take_steps(run, seen, options)
    seconds = seen.seconds[: -1 if options.profile else None]
    packed = sum(algorithm.group(example).length for example in examples) / options.steps
    return figures(seconds, packed, sum(p.numel() for p in model.parameters())) | {
        "first_reference_s": scored[0],
        "reference_s": statistics.median(scored[1:]),
        "losses": seen.losses,
    }


def take_steps(run: Any, seen: Observed, options: argparse.Namespace) -> None:
    """All of a run's; the last one with the profiler where asked for."""
    synchronize()
    for number, batch in enumerate(run.batches()):

        def step(batch: Any = batch) -> None:
            for micro in batch.micros:
                run.engine.backward(run.loss(micro))
            run.finish(batch)

        profiled(step) if options.profile and number == options.steps - 1 else step()
        print(f"step {number + 1}: {seen.seconds[-1]:.3f} s, {peak_gb():.1f} GB", flush=True)


def trl(options: argparse.Namespace) -> dict[str, Any]:
    """TRL with the same rows in the same order; its step has the reference in it."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOTrainer

    from alignment_trainer.data.sampler import Sampler

    rows, marks = ROWS[options.rows], list[float]()
    made = token_rows(rows, options.steps)
    sampler = Sampler(len(made), rows.batch, seed=0)
    order = [index for step in range(options.steps) for index in sampler.batch(step)]
    texts = [{name: "".join(f" t{t}" for t in tokens) for name, tokens in made[i].items()} for i in order]

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize()
            marks.append(time.perf_counter())

        on_step_end = on_step_begin

    with tempfile.TemporaryDirectory() as folder:
        network_, tokenizer = network(options.shape), words()
        trainer = DPOTrainer(
            model=network_,
            ref_model=network(options.shape),
            args=trl_options(folder, rows, options.precision),
            train_dataset=Dataset.from_list(texts),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    seconds = [end - begin for begin, end in zip(marks[::2], marks[1::2], strict=False)]
    tokens = sum(2 * len(row["prompt"]) + len(row["chosen"]) + len(row["rejected"]) for row in made) / options.steps
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return figures(seconds, tokens, sum(p.numel() for p in network_.parameters())) | {
        "losses": losses,
        "pairs_at_once": rows.pairs,
    }


def trl_options(folder: str, rows: Rows, precision: str) -> Any:
    """The same step for TRL; folder: where it writes."""
    from trl import DPOConfig

    return DPOConfig(
        output_dir=folder,
        per_device_train_batch_size=rows.pairs,
        gradient_accumulation_steps=rows.batch // rows.pairs,
        num_train_epochs=1,
        learning_rate=5e-6,
        lr_scheduler_type="constant",
        beta=0.1,
        max_grad_norm=1.0,
        weight_decay=0.0,
        bf16=precision == "bf16",
        gradient_checkpointing=False,
        max_length=2048,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=device().type == "cpu",
    )


def words() -> Any:
    """A tokenizer whose every token is a word, so that rows of tokens are rows of text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"t{token}": token for token in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def figures(seconds: list[float], tokens: float, parameters: int) -> dict[str, Any]:
    """tokens: of a step, packed here, padded by none."""
    median = statistics.median(seconds[2:])
    return {
        "first_step_s": seconds[0],
        "second_step_s": seconds[1],
        "step_s": median,
        "tokens": tokens,
        "tokens_per_s": tokens / median,
        "tflops": 6 * parameters * tokens / median / 1e12,
        "peak_gb": peak_gb(),
    }


def profiled(step: Callable[[], None]) -> None:
    """Prints where the device's time goes: by kernel, since an operator's time is that of its kernels once more."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        seconds = timed(step)
    events = [event for event in profiler.key_averages() if event.device_type != DeviceType.CPU]
    busy = sum(event.self_device_time_total for event in events) / 1e6
    print(f"one step with the profiler: {seconds:.3f} s, of which kernels {busy:.3f}")
    for event in sorted(events, key=lambda event: -event.self_device_time_total)[:30]:
        print(f"  {event.self_device_time_total / 1e3:8.1f} ms {event.count:6d}  {event.key[:110]}")


def in_a_process(options: argparse.Namespace, side: str, shape: str, rows: str) -> dict[str, Any]:
    """One case; what went wrong where it failed."""
    flags = ["--steps", str(options.steps), "--micro", str(options.micro), "--precision", options.precision]
    flags += ["--profile"] if options.profile and side == "ours" else []
    command = [sys.executable, __file__, "--side", side, "--shapes", shape, "--rows", rows, *flags]
    last, began = "", time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        for line in child.stdout or ():
            last = line.strip() or last
            print(f"{time.monotonic() - began:6.1f} s  {line}", end="", flush=True)
    if child.returncode:
        return {"failed": last[:300]}
    found: dict[str, Any] = json.loads(last)
    return found


def rounded(value: Any) -> Any:
    """Four digits are more than repeat."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["135m", "1.7b"])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=["gsm8k", "chat", "shared"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--micro", type=int, default=8192, help="tokens at once")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--trl", action="store_true", help="TRL too")
    parser.add_argument("--profile", action="store_true", help="of the last step")
    parser.add_argument("--side", choices=("ours", "trl"), help="this case alone, in this process")
    options = parser.parse_args()
    if options.side:
        (options.shape,), (options.rows,) = options.shapes, options.rows
        print(json.dumps(rounded({"ours": ours, "trl": trl}[options.side](options))))
        return
    import torch

    where = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {"device": where, "torch": torch.__version__, "micro": options.micro}
    for shape in options.shapes:
        for rows in options.rows:
            for side in ("ours", "trl") if options.trl else ("ours",):
                found[f"{shape} {rows} {side}"] = in_a_process(options, side, shape, rows)
                print(f"{shape} {rows} {side}: {found[f'{shape} {rows} {side}']}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
