"""How long a job will take on this machine's CPUs, said before it starts: arithmetic over a measured rate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from alignment_api.contract.algorithms import Grpo, Ppo
from alignment_api.contract.inputs import HELD_OUT
from alignment_api.contract.roles import ROLES
from alignment_api.contract.sources import parse_source
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.reward_stage import LEAST_HELD_OUT, spec_of_stage
from alignment_api.derived.stages import stages_of

if TYPE_CHECKING:
    from alignment_trainer.data.rows import RawRow

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


class NotKnown(Exception):
    """Why nothing can be said of a job's work, in words."""


@dataclass(frozen=True)
class Machine:
    """That the job runs on. bf16: whether its CPU has it in hardware. gpus: whether there are any."""

    cores: int
    bf16: bool
    gpus: bool


def duration_text(spec: AlignmentJobSpec, model: Decoder | None, machine: Machine) -> str:
    """How long a job will take, or why that is not known. spec: with the precision that it has here."""
    try:
        seconds = duration_range(spec, model, machine)
    except NotKnown as unknown:
        return f"how long it takes is not known before its first steps: {unknown}"
    low, high = (max(1, round(each / 60)) for each in seconds)
    minutes = f"{low} to {high} minutes" if high > 1 else "a minute"
    return f"about {minutes} on this machine's {machine.cores} cores, in {spec.training.precision}"


def duration_range(spec: AlignmentJobSpec, model: Decoder | None, machine: Machine) -> tuple[float, float]:
    """Seconds, from and to, by a rate that is measured here and now. Raises NotKnown."""
    is_bf16 = spec.training.precision == "bf16"
    if machine.gpus:
        raise NotKnown("no rate is measured of GPUs")
    if model is None:
        raise NotKnown(f"no safetensors of {spec.model.source} are on this machine")
    if is_bf16 and not machine.bf16:
        raise NotKnown("it computes in bf16, which this CPU has not in hardware")
    return work_of(spec).seconds_range(model.parameters, measured_rate(), is_bf16)


def work_of(spec: AlignmentJobSpec) -> Work:
    """Over all stages. Raises NotKnown where its rows are not on this machine, or cannot be counted in a moment."""
    roles = [role for stage in stages_of(spec) for role in stage.roles]
    starts = Work(roles=len(roles), samplers=sum(ROLES[role].samples for role in roles))
    work = starts + (_online(spec, spec.algorithm.online) if spec.algorithm.online else _offline(spec))
    if any(stage.name == "reward" for stage in stages_of(spec)):
        work += _offline(spec_of_stage(spec, "reward"), LEAST_HELD_OUT)
    return work


def measured_rate(seconds: float = 0.3) -> float:
    """FLOPs a second of an fp32 product of a small model's size, over all cores."""
    import numpy as np

    left, right = np.ones((1024, 576), np.float32), np.ones((576, 1536), np.float32)
    operations, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        np.matmul(left, right)
        operations += 2 * 1024 * 576 * 1536
    return operations / (time.perf_counter() - began)


def _offline(spec: AlignmentJobSpec, least_held_out: int = 1) -> Work:
    count, tokens = _rows(spec, spec.data.source)
    held = _held_out(spec, count, least_held_out)
    steps = spec.training.max_steps or max(1, round(count * spec.training.epochs / spec.training.batch_size))
    trained = steps * spec.training.batch_size * tokens
    reference = (min(count, trained / tokens) + held) * tokens if spec.algorithm.options.needs_reference else 0.0
    return Work(forward=reference + held * tokens) + _learnt(spec, trained)


def _held_out(spec: AlignmentJobSpec, count: float, least: int = 1) -> float:
    """Rows that are held out. count: of those that the job has."""
    evaluation = spec.data.evaluation
    if evaluation.source is not None:
        return _rows(spec, evaluation.source)[0]
    return count * evaluation.fraction if evaluation.fraction is not None else max(count * HELD_OUT, least)


def _learnt(spec: AlignmentJobSpec, tokens: float) -> Work:
    """Through weights that are trained; of frozen ones, beside which adapters are, no gradient is made."""
    return Work(trained=tokens) if spec.training.lora is None else Work(forward=2 * tokens)


def _online(spec: AlignmentJobSpec, options: Ppo | Grpo) -> Work:
    count, tokens = _rows(spec, spec.data.source)
    steps = spec.training.max_steps or max(1, round(count * spec.training.epochs / options.prompts_per_rollout))
    sampled = float(steps * options.completions_per_rollout * options.max_new_tokens)
    seen = sampled + steps * options.prompts_per_rollout * tokens
    trainees, judges = (2, 3) if isinstance(options, Ppo) else (1, 2)
    evaluated = 2 * _held_out(spec, count) * options.max_new_tokens
    return Work(
        forward=judges * seen + evaluated,
        trained=trainees * options.epochs_per_rollout * seen,
        sampled=sampled + evaluated,
    )


def _rows(spec: AlignmentJobSpec, source: str) -> tuple[float, float]:
    """Rows to learn from (several of a row that states several pairs), and tokens of one, by the first ones. Raises
    NotKnown.
    """
    from alignment_trainer.data.counting import count_rows
    from alignment_trainer.data.rows import read_rows
    from alignment_trainer.process.errors import UserError

    parsed = parse_source(source)
    path = Path(parsed.path)
    if parsed.scheme != "file" or not (parsed.is_pattern or path.exists()):
        raise NotKnown(f"the rows of {source} are not on this machine")
    try:
        count = count_rows(path)
        first = [row for row in islice(read_rows(path), _SAMPLED_ROWS) if row.broken is None]
    except UserError as error:
        raise NotKnown(str(error)) from error
    if count is None:
        raise NotKnown(f"the rows of {source} cannot be counted in a moment (Parquet, Arrow and plain .jsonl can)")
    found = [tokens for row in first for tokens in _tokens(spec, row)]
    return count * len(found) / max(1, len(first)), sum(found) / max(1, len(found))


def _tokens(spec: AlignmentJobSpec, row: RawRow) -> list[float]:
    """Of each row that a raw one states: all of its text where that is one, else of each pair its own."""
    whole = _letters(row.value) / _LETTERS_PER_TOKEN
    if spec.algorithm.options.rows != "preferences":
        return [whole]
    from alignment_trainer.data.layouts.preferences import parse_preferences
    from alignment_trainer.data.rows import InvalidRow

    try:
        pairs = parse_preferences(row, spec.data.columns)
    except InvalidRow:
        return [whole]
    if len(pairs) == 1:
        return [whole]
    shared = sum(len(turn.content) for turn in pairs[0].prompt)
    return [(shared + len(pair.chosen) + len(pair.rejected)) / _LETTERS_PER_TOKEN for pair in pairs]


def _letters(value: object) -> int:
    """Of every text in a row, however deep it stands."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_letters, value.values()))
    return sum(map(_letters, value)) if isinstance(value, list) else 0
