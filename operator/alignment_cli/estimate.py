"""How long a job will take on this machine's CPUs, said before it starts: arithmetic over a measured rate."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from alignment_api.contract.algorithms import Grpo, Ppo
from alignment_api.contract.roles import ROLES
from alignment_api.contract.sources import parse_source
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.reward_stage import spec_of_stage
from alignment_api.derived.stages import stages_of

_SAMPLED_ROWS = 200
_LETTERS_PER_TOKEN = 4.0
"""Of English; what a tokenizer makes of other texts is part of the range."""
_FORWARD, _BACKWARD = 2, 4
"""FLOPs a parameter and token (Kaplan et al. 2020, section 2.1)."""
_SHARE = 0.6
"""Of the measured rate that a model's passes reach: the rest of a layer is elementwise (docs/benchmarks.md)."""
_BF16_GAIN = 1.5
"""A pass in bf16 against fp32 on a CPU that multiplies bf16: only the products gain, twice (docs/benchmarks.md)."""
_SAMPLING_SHARE = 0.3
"""Of the rate: decoding a batch of short sequences waits for memory."""
_SECONDS_PER_ROLE = 12.0
"""To load a model, save it, and look whether peers are there."""
_SECONDS_PER_SAMPLER = 45.0
"""More, for a role that is a vLLM server."""
_RANGE = (0.7, 1.7)
"""Around the figure: other things that run here, and texts that are longer or shorter than the first rows."""


@dataclass(frozen=True)
class Work:
    """What a job computes, in tokens through a model of its size, how many roles start, how many with vLLM."""

    forward: float = 0.0
    trained: float = 0.0
    sampled: float = 0.0
    roles: int = 0
    samplers: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.forward + other.forward,
            self.trained + other.trained,
            self.sampled + other.sampled,
            self.roles + other.roles,
            self.samplers + other.samplers,
        )

    def seconds(self, parameters: int, rate: float) -> float:
        """rate: FLOPs a second of this machine."""
        passes = _FORWARD * self.forward + (_FORWARD + _BACKWARD) * self.trained
        computed = passes / _SHARE + _FORWARD * self.sampled / _SAMPLING_SHARE
        return parameters * computed / rate + self.roles * _SECONDS_PER_ROLE + self.samplers * _SECONDS_PER_SAMPLER

    def seconds_range(self, parameters: int, rate: float, bf16: bool) -> tuple[float, float]:
        """Seconds, from and to. rate: FLOPs a second in fp32; bf16: whether it computes in that, in hardware."""
        seconds = self.seconds(parameters, rate * (_BF16_GAIN if bf16 else 1.0))
        return seconds * _RANGE[0], seconds * _RANGE[1]


def duration_range(spec: AlignmentJobSpec, parameters: int, bf16: bool) -> tuple[float, float] | None:
    """Seconds, from and to, by a rate that is measured here and now; None where the data is not on this machine.

    bf16: whether the job computes in it, in hardware.
    """
    work = work_of(spec)
    return None if work is None else work.seconds_range(parameters, measured_rate(), bf16)


def work_of(spec: AlignmentJobSpec) -> Work | None:
    """Over all stages; None where the data is not on this machine."""
    roles = [role for stage in stages_of(spec) for role in stage.roles]
    starts = Work(roles=len(roles), samplers=sum(ROLES[role].samples for role in roles))
    parts = [starts, _online(spec, spec.algorithm.online) if spec.algorithm.online else _offline(spec)]
    if any(stage.name == "reward" for stage in stages_of(spec)):
        parts.append(_offline(spec_of_stage(spec, "reward")))
    return None if None in parts else sum((part for part in parts if part), Work())


def measured_rate(seconds: float = 0.3) -> float:
    """FLOPs a second of an fp32 product of a small model's size, over all cores."""
    import numpy as np

    left, right = np.ones((1024, 576), np.float32), np.ones((576, 1536), np.float32)
    operations, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        np.matmul(left, right)
        operations += 2 * 1024 * 576 * 1536
    return operations / (time.perf_counter() - began)


def _offline(spec: AlignmentJobSpec) -> Work | None:
    rows = _rows(spec.data.source)
    if rows is None:
        return None
    evaluation = spec.data.evaluation
    held_out = _rows(evaluation.source) if evaluation.source else None
    count, tokens = rows
    held = held_out[0] if held_out else count * (evaluation.fraction or 0.0)
    steps = spec.training.max_steps or max(1, round(count * spec.training.epochs / spec.training.batch_size))
    trained = steps * spec.training.batch_size * tokens
    reference = (min(count, trained / tokens) + held) * tokens if spec.algorithm.options.needs_reference else 0.0
    return Work(forward=reference + held * tokens) + _learnt(spec, trained)


def _learnt(spec: AlignmentJobSpec, tokens: float) -> Work:
    """Through weights that are trained; of frozen ones, beside which adapters are, no gradient is made."""
    return Work(trained=tokens) if spec.training.lora is None else Work(forward=2 * tokens)


def _online(spec: AlignmentJobSpec, options: Ppo | Grpo) -> Work | None:
    rows = _rows(spec.data.source)
    if rows is None:
        return None
    held_out = _rows(spec.data.evaluation.source) if spec.data.evaluation.source else None
    steps = spec.training.max_steps or max(1, round(rows[0] * spec.training.epochs / options.prompts_per_rollout))
    sampled = float(steps * options.completions_per_rollout * options.max_new_tokens)
    seen = sampled + steps * options.prompts_per_rollout * rows[1]
    trainees, judges = (2, 3) if isinstance(options, Ppo) else (1, 2)
    evaluated = 2 * (held_out[0] if held_out else 0) * options.max_new_tokens
    return Work(
        forward=judges * seen + evaluated,
        trained=trainees * options.epochs_per_rollout * seen,
        sampled=sampled + evaluated,
    )


def _rows(source: str) -> tuple[int, float] | None:
    """Rows of files of JSON lines, and tokens a row by the first of them; None where they are not such files here."""
    parsed = parse_source(source)
    files = _files(Path(parsed.path), parsed.is_pattern) if parsed.scheme == "file" else []
    if not files or any(file.suffix != ".jsonl" for file in files):
        return None
    count = sum(1 for file in files for line in _lines(file))
    first = islice(chain.from_iterable(map(_lines, files)), _SAMPLED_ROWS)
    lengths = [_letters(json.loads(line)) / _LETTERS_PER_TOKEN for line in first]
    return count, sum(lengths) / max(1, len(lengths))


def _files(path: Path, is_pattern: bool) -> list[Path]:
    from alignment_trainer.data.patterns import matching_files

    if is_pattern:
        return matching_files(path)
    return [path] if path.is_file() else []


def _lines(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if line.strip())


def _letters(value: object) -> int:
    """Of every text in a row, however deep it stands."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_letters, value.values()))
    return sum(map(_letters, value)) if isinstance(value, list) else 0
