"""What a person sees while a run goes on: a live table in a terminal, lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from alignment_api.contract.status import (
    AlignmentJobStatus,
    LearningRateReport,
    MicroBatchReport,
    PrecisionReport,
    Progress,
)
from alignment_operator.plan.types import PodView

_SECONDS_BETWEEN_LINES = 5.0
_LONGEST_SILENCE = 10.0
"""Seconds without a line, after which one says what goes on: a screen that stands still looks like a run that hangs."""
_METRICS = {
    "reward": "reward",
    "heldout_reward": "held-out reward",
    "kl": "KL",
    "completion_length": "length",
    "value_loss": "value loss",
    "weight_version": "version",
    "loss": "loss",
    "reward_margin": "margin",
    "accuracy": "accuracy",
    "heldout_accuracy": "held-out accuracy",
}
"""Metric -> its short name here, in this order."""


class Display:
    """Shows each pass. A context manager: the live table lives inside it."""

    def __init__(self, console: Console, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name, self._clock = name, clock
        self._console = console
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._told: dict[str, str] = {}
        self._next_line = 0.0
        self._began = self._spoke = self._clock()

    def __enter__(self) -> Display:
        self._context: AbstractContextManager[object] = self._live or nullcontext()
        self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(Text(text))

    def show(self, status: AlignmentJobStatus, views: tuple[PodView, ...]) -> None:
        """The state after a pass."""
        if self._live is not None:
            self._live.update(_table(self._name, self._elapsed(), status, views))
        else:
            self._lines(status, views)

    def _lines(self, status: AlignmentJobStatus, views: tuple[PodView, ...]) -> None:
        self._when_new("phase", f"{self._name}: {status.phase}", self._print)
        self._when_new("stage", f"stage {status.stage}", self._print)
        if status.precision is not None:
            self._when_new("precision", precision_text(status.precision), self._print)
        if status.learning_rate is not None:
            self._when_new("learning rate", learning_rate_text(status.learning_rate), self._print)
        if status.micro_batch is not None:
            self._when_new("micro-batch", micro_batch_text(status.micro_batch), self._print)
        for view in views:
            self._when_new(view.name, f"{_instance_name(view)}: {_state(view)}", self._print)
        progress = _progress_line(status, views)
        if progress and self._clock() >= self._next_line:
            self._when_new("progress", progress, self._print)
            self._next_line = self._clock() + _SECONDS_BETWEEN_LINES
        if self._clock() - self._spoke >= _LONGEST_SILENCE:
            self._print(f"{self._elapsed()}  {_busy_line(views)}")

    def _when_new(self, what: str, line: str, tell: Callable[[str], None]) -> None:
        if self._told.get(what) != line:
            self._told[what] = line
            tell(line)

    def _elapsed(self) -> str:
        return duration(self._clock() - self._began)

    def _print(self, line: str) -> None:
        self._spoke = self._clock()
        self._console.print(Text(f"{datetime.now():%H:%M:%S} {line}"), soft_wrap=True)


def _progress_line(status: AlignmentJobStatus, views: tuple[PodView, ...]) -> str:
    if status.progress is None or not status.progress.step:
        return ""
    figures = [f"{name} {value:.4g}" for name, value in _chosen_metrics(status)]
    unit = "rows" if status.stage == "prepare" else "step"
    parts = [f"{status.stage}", f"{unit} {status.progress.step}/{status.progress.total_steps}", *figures]
    return "  ".join([*parts, *_pace(status.progress), memory_text(_memory(views))])


def _busy_line(views: tuple[PodView, ...]) -> str:
    """What those that run are doing."""
    return "; ".join(f"{_instance_name(view)}: {_state(view)}" for view in views if not view.ended) or "starting"


def _table(name: str, elapsed: str, status: AlignmentJobStatus, views: tuple[PodView, ...]) -> RenderableType:
    stage = (status.stage or status.phase, "cyan")
    head = Text.assemble((name, "bold"), f"  {status.algorithm or ''}  ", stage, f"  {elapsed}")
    parts: list[RenderableType] = [head]
    if status.precision is not None:
        parts.append(Text(precision_text(status.precision), style="dim"))
    if status.learning_rate is not None:
        parts.append(Text(learning_rate_text(status.learning_rate), style="dim"))
    if status.micro_batch is not None:
        parts.append(Text(micro_batch_text(status.micro_batch), style="dim"))
    progress = status.progress
    if progress is not None and progress.total_steps:
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=progress.total_steps, completed=progress.step, width=30)
        row.add_row(bar, f"{progress.step}/{progress.total_steps}", *_pace(progress), memory_text(_memory(views)))
        parts.append(row)
    if figures := _chosen_metrics(status):
        parts.append(Text("  ".join(f"{metric} {value:.4g}" for metric, value in figures)))
    roles = Table.grid(padding=(0, 2))
    for view in views:
        roles.add_row(f"  {_instance_name(view)}", _state(view), _memory_of(view))
    parts.append(roles)
    return Group(*parts)


def _chosen_metrics(status: AlignmentJobStatus) -> list[tuple[str, float]]:
    return [(words, status.metrics[name]) for name, words in _METRICS.items() if name in status.metrics]


def _pace(progress: Progress) -> list[str]:
    speed = [f"{progress.tokens_per_second:,.0f} tokens/s"] if progress.tokens_per_second else []
    return speed + ([f"ETA {duration(progress.eta_seconds)}"] if progress.eta_seconds is not None else [])


def _instance_name(view: PodView) -> str:
    return f"{view.role}-{view.index}"


def _state(view: PodView) -> str:
    if view.gated:
        return "waits for the roles it needs"
    if view.ended:
        return "done" if view.phase == "Succeeded" else _why(view)
    if view.gone_by is not None:
        return "saving and going"
    if view.status is not None:
        return view.status.state
    return view.message or ("starting" if view.phase == "Running" else "waits")


def _why(view: PodView) -> str:
    if view.outcome is not None and view.outcome.failure is not None:
        return f"failed ({view.outcome.failure.reason}: {view.outcome.failure.message.splitlines()[0]})"
    return "saved and gone" if view.outcome is not None else f"failed ({view.message})"


def _memory(views: tuple[PodView, ...]) -> int:
    return sum(view.status.memory_bytes for view in views if view.status is not None and not view.ended)


def _memory_of(view: PodView) -> str:
    return memory_text(view.status.memory_bytes) if view.status is not None else ""


def precision_text(precision: PrecisionReport) -> str:
    """In what the job computes, and why."""
    return f"computes in {precision.value}: {precision.why}"


def learning_rate_text(report: LearningRateReport) -> str:
    """With what the job trains, and why."""
    return f"learns at a rate of {report.value:g} at most: {report.why}"


def micro_batch_text(report: MicroBatchReport) -> str:
    """How much it computes at once, and why."""
    again = f", {report.recompute_layers} layers recomputed" if report.recompute_layers else ""
    return f"computes {report.tokens:,} tokens at once{again}: {report.why}"


def memory_text(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / 2**30:.1f} GiB" if count else ""


def duration(seconds: float) -> str:
    """2h10m, 3m05s, 12s"""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minute:02d}m"
    return f"{minute}m{second:02d}s" if minute else f"{second}s"
