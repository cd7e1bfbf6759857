"""What a training run tells the world: Prometheus, /status, the log, and TensorBoard where it is asked for."""

from __future__ import annotations

import logging
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from alignment_api.contract.status import CheckpointStatus, Evaluated, Progress
from alignment_trainer.experience.metrics import COMPONENT
from alignment_trainer.process.metrics import finite_ones

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from alignment_trainer.checkpoint.checkpoint import Checkpoint
    from alignment_trainer.loop.offline import StepReport
    from alignment_trainer.process.instance import Instance

log = logging.getLogger(__name__)

_WINDOW_STEPS = 20
"""Steps over which tokens per second are averaged. The first of a process is left out: it compiles and warms up."""
HELD_OUT = {
    "accuracy": "heldout_accuracy",
    "margin": "heldout_margin",
    "likelierChosen": "heldout_likelier_chosen",
    "nll": "heldout_nll",
    "perplexity": "heldout_perplexity",
    "reward": "heldout_reward",
}
"""Held-out figure -> its gauge."""
_COUNTED = frozenset({"prompts_trained", "dropped_prompts", "silent_steps"})
"""Of a step each; their gauges hold the sum so far."""


class Pace(NamedTuple):
    """How fast it goes, and how long it takes to the last step."""

    tokens_per_second: float
    eta_seconds: int


class Steps:
    """The last steps of this process, by which its pace is told."""

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=_WINDOW_STEPS)
        self._is_first = True

    def after(self, report: StepReport) -> Pace | None:
        """With one more step; None after the first."""
        if self._is_first:
            self._is_first = False
            return None
        self._recent.append((report.tokens, report.seconds))
        tokens, seconds = map(sum, zip(*self._recent, strict=True))
        eta = (report.total_steps - report.step) * seconds / len(self._recent)
        return Pace(tokens / max(seconds, 1e-9), round(eta))


class Reporter:
    """The observer of a run, on rank 0. `close` it at the end: TensorBoard buffers."""

    def __init__(self, instance: Instance) -> None:
        self._board, self._metrics = instance.board, instance.metrics
        self._latest: dict[str, float] = {}
        self._pace = Steps()
        self._curves = _open_curves(instance.storage) if instance.spec.tracking.tensorboard else None

    def stepped(self, report: StepReport) -> None:
        """One optimizer step is done."""
        values = finite_ones(report.metrics | {"gradient_norm": report.grad_norm}) | {
            "learning_rate": report.learning_rate,
            "step_seconds": report.seconds,
        }
        pace = self._pace.after(report)
        if pace is not None:
            values["tokens_per_second"] = pace.tokens_per_second
        self._publish(report.step, values)
        self._metrics.set("step", report.step)
        self._metrics.add_tokens(report.tokens)
        self._board.update(
            progress=Progress(
                step=report.step,
                total_steps=report.total_steps,
                tokens_per_second=pace.tokens_per_second if pace else None,
                eta_seconds=pace.eta_seconds if pace else None,
            )
        )
        rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
        log.info("step %d of %d", report.step, report.total_steps, extra={"step": report.step, **rounded})

    def saved(self, checkpoint: Checkpoint) -> None:
        """A checkpoint is sealed."""
        status = checkpoint_status(checkpoint)
        self._metrics.set("checkpoint_step", checkpoint.step)
        self._board.update(checkpoint=status)
        log.info("saved step %d", checkpoint.step, extra={"folder": str(checkpoint.place)})

    def paused(self, seconds: float, waited: bool) -> None:
        """The training thread goes on after a snapshot."""
        self._metrics.set("checkpoint_pause_seconds", seconds)
        if waited:
            log.warning(
                "saving waited for the checkpoint before, which was still being written: %.1f s; raise "
                "spec.checkpoint.everySteps, or take faster storage",
                seconds,
            )

    def evaluated(self, step: int, figures: Evaluated) -> None:
        """The held-out rows were scored by the model after `step` steps."""
        values = {HELD_OUT[name]: interval.value for name, interval in figures.items() if name in HELD_OUT}
        self._publish(step, values)
        told = {f"heldout_{name}": interval.value for name, interval in figures.items()}
        log.info("held-out figures at step %d", step, extra={"step": step, **told})

    def close(self) -> None:
        """Writes out what is buffered."""
        if self._curves is not None:
            self._curves.close()

    def _publish(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._show(name, value)
            if self._curves is not None:
                self._curves.add_scalar(name, value, step, walltime=time.time())
        self._latest |= values
        self._board.update(metrics=dict(self._latest))

    def _show(self, name: str, value: float) -> None:
        if name.startswith(COMPONENT):
            self._metrics.set_component(name.removeprefix(COMPONENT), value)
        else:
            (self._metrics.add if name in _COUNTED else self._metrics.set)(name, value)


def checkpoint_status(checkpoint: Checkpoint) -> CheckpointStatus:
    """A checkpoint that was just sealed, as status says it."""
    return CheckpointStatus(step=checkpoint.step, verified_at=datetime.now(UTC))


def _open_curves(storage: str) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(f"{storage}/tensorboard")
