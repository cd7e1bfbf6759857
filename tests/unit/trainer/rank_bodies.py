"""What the ranks of a test do."""

from pathlib import Path
from typing import Any

from tiny_runs import Setting, tiny_run

from alignment_trainer.train import train


def losses(folder: str, **setting: Any) -> list[list[float]]:
    """Trains and returns losses and gradient norms (empty on ranks that report nothing)."""
    run, recorder = tiny_run(Path(folder), Setting(**setting))
    train(run)
    return [recorder.losses, [report.grad_norm for report in recorder.reports]]
