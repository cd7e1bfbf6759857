"""Prometheus metrics of a role's process, and the reporter that the training loop talks to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge

from alignment_trainer.servers.board import resident_peak_bytes

_LABELS = ("job_name", "role")  # not `job`: Prometheus gives that name to the scrape
GAUGES = {
    "step": ("alignment_step", "Optimizer steps done"),
    "loss": ("alignment_loss", "Mean training loss of the last step"),
    "reward_margin": ("alignment_reward_margin", "Mean implicit reward margin of the last step, nats times beta"),
    "accuracy": ("alignment_preference_accuracy_ratio", "Share of pairs with a positive implicit reward margin"),
    "likelier_chosen": ("alignment_likelier_chosen_ratio", "Share of pairs whose chosen completion is the likelier"),
    "chosen_reward": ("alignment_chosen_reward", "Mean implicit reward of chosen completions, nats times beta"),
    "rejected_reward": ("alignment_rejected_reward", "Mean implicit reward of rejected completions, nats times beta"),
    "chosen_logprob": ("alignment_chosen_logprob_nats", "Mean summed log-prob of chosen completions"),
    "rejected_logprob": ("alignment_rejected_logprob_nats", "Mean summed log-prob of rejected completions"),
    "learning_rate": ("alignment_learning_rate", "Learning rate of the last step"),
    "gradient_norm": ("alignment_gradient_norm", "Global L2 norm of the gradient before clipping"),
    "tokens_per_second": ("alignment_tokens_per_second", "Tokens a second over all ranks, padding not counted"),
    "step_seconds": ("alignment_step_seconds", "Duration of the last optimizer step"),
    "checkpoint_step": ("alignment_checkpoint_step", "Optimizer steps in the last verified checkpoint"),
    "heldout_accuracy": ("alignment_heldout_accuracy_ratio", "Held-out share of pairs with a positive reward margin"),
    "heldout_margin": ("alignment_heldout_reward_margin", "Held-out mean implicit reward margin, nats times beta"),
    "heldout_likelier_chosen": ("alignment_heldout_likelier_chosen_ratio", "Held-out share: chosen is the likelier"),
    "rows": ("alignment_rows", "Rows done by the phase that runs"),
    "rows_planned": ("alignment_rows_planned", "Rows to be done by the phase that runs"),
    "servers": ("alignment_reference_servers", "Reference servers that answer"),
}
"""Short name in code -> name and help in Prometheus."""


class Metrics:
    """Every metric of this process, in a registry of its own, labelled with job and role."""

    def __init__(self, job: str, role: str) -> None:
        self.registry = CollectorRegistry()
        self._labels = {"job_name": job, "role": role}
        self._gauges = {
            short: Gauge(name, text, _LABELS, registry=self.registry) for short, (name, text) in GAUGES.items()
        }
        tokens = Counter("alignment_tokens", "Tokens processed, padding not counted", _LABELS, registry=self.registry)
        self._tokens = tokens.labels(**self._labels)
        self._phases = Gauge(
            "alignment_phase_seconds", "Seconds spent in a phase so far", (*_LABELS, "phase"), registry=self.registry
        )
        memory = Gauge("alignment_resident_memory_bytes", "Peak resident memory", _LABELS, registry=self.registry)
        memory.labels(**self._labels).set_function(resident_peak_bytes)

    def set(self, short: str, value: float) -> None:
        """Sets the gauge of a short name of GAUGES."""
        self._gauges[short].labels(**self._labels).set(value)

    def add(self, short: str, value: float) -> None:
        """Adds to the gauge of a short name of GAUGES."""
        self._gauges[short].labels(**self._labels).inc(value)

    def add_tokens(self, tokens: int) -> None:
        self._tokens.inc(tokens)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to the phase's seconds."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._phases.labels(**self._labels, phase=name).inc(time.monotonic() - began)
