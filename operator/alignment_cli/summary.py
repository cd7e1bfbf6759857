"""What a finished run comes down to."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignment_api.contract.status import AlignmentJobStatus, EvaluationReport, Interval
from alignment_api.derived.reward_stage import REWARD_FOLDER
from alignment_cli.display import duration

_WORDS = {
    "margin": "reward margin",
    "likelierChosen": "chosen is likelier",
    "nll": "nats per token",
    "length": "length (tokens)",
    "finished": "ends by itself",
    "kl": "KL to the reference (nats per token)",
}
"""A figure's name -> its words; others are their own."""


def print_summary(console: Console, name: str, status: AlignmentJobStatus, storage: Path, output: str) -> None:
    """Held-out figures before and after (with 95% intervals), the time it took, and where the model is."""
    stages = {stage.name: stage for stage in status.stages}
    train = stages.get("train")
    took = f"{name} is complete after {duration(status.active_seconds)}"
    if train is not None and train.finished_at is not None:
        took += f" (training {duration((train.finished_at - train.started_at).total_seconds())})"
    console.print(took, highlight=False)
    for stage in status.stages:
        if stage.evaluation is not None and stage.name == "reward":
            console.print(_figures("reward model", stage.evaluation, storage / REWARD_FOLDER))
    if status.evaluation is not None:
        pairs = status.data is not None and status.data.format == "preferences"
        console.print(_figures("", status.evaluation, storage if pairs else None))
    console.print(f"model   {output}/model", highlight=False, soft_wrap=True)
    console.print(f"report  {output}/evaluation.json", highlight=False, soft_wrap=True)


def _figures(title: str, report: EvaluationReport, pairs: Path | None) -> Table:
    """pairs: the storage of a job that learns from such."""
    table = Table(box=None, pad_edge=False, title=title or None, title_justify="left")
    counts = sorted({interval.count for interval in report.after.values()})
    for heading in (f"{' or '.join(map(str, counts))} held out", "before", "after"):
        table.add_column(heading)
    for name, after in report.after.items():
        before = report.before.get(name)
        table.add_row(_WORDS.get(name, name), _interval(before) if before is not None else "", _interval(after))
    baseline = length_baseline(pairs) if pairs is not None else None
    if baseline is not None:
        table.add_row("accuracy by length alone", f"{baseline:.3f}", "")
    return table


def _interval(interval: Interval) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def length_baseline(storage: Path) -> float | None:
    """Held-out accuracy of one rule: the longer completion is the chosen one (the shorter, if training rows say so).

    Ties count a half. A model that is no better has learnt lengths. None where the prepared data is gone.
    """
    if not (storage / "prepared" / "evaluation.safetensors").exists():
        return None
    longer = _share_longer(storage / "prepared" / "evaluation.safetensors")
    return longer if _share_longer(storage / "prepared" / "train.safetensors") >= 0.5 else 1 - longer


def _share_longer(file: Path) -> float:
    from safetensors.numpy import load_file

    tensors = load_file(file)
    chosen, rejected = tensors["lengths_tokens"].reshape(-1, 2).T
    return float(((chosen > rejected) + 0.5 * (chosen == rejected)).mean())
