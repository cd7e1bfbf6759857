"""Prometheus metrics of a role's process, and the reporter that the training loop talks to."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge

from alignment_trainer.process.status_board import resident_peak_bytes

_LABELS = ("job_name", "role")  # not `job`: Prometheus gives that name to the scrape
GAUGES = {
    "step": ("alignment_step", "Optimizer steps done"),
    "loss": ("alignment_loss", "Mean training loss of the last step"),
    "reward_margin": ("alignment_reward_margin", "Mean margin of the last step's pairs: implicit rewards, or scores"),
    "accuracy": ("alignment_preference_accuracy_ratio", "Share of the last step's pairs with a positive margin"),
    "reference_point": ("alignment_reference_point_nats", "KTO's z: log-ratio of mismatched completions, 0 at least"),
    "likelier_chosen": ("alignment_likelier_chosen_ratio", "Share of pairs whose chosen completion is the likelier"),
    "chosen_reward": ("alignment_chosen_reward", "Mean reward of chosen completions: implicit, or a score"),
    "rejected_reward": ("alignment_rejected_reward", "Mean reward of rejected completions: implicit, or a score"),
    "chosen_logprob": ("alignment_chosen_logprob_nats", "Mean summed log-prob of chosen completions"),
    "chosen_nll": ("alignment_chosen_nll_nats", "Mean negative log-likelihood of chosen completions, nats per token"),
    "rejected_logprob": ("alignment_rejected_logprob_nats", "Mean summed log-prob of rejected completions"),
    "learning_rate": ("alignment_learning_rate", "Learning rate of the last step"),
    "gradient_norm": ("alignment_gradient_norm", "Global L2 norm of the gradient before clipping"),
    "skipped_steps": ("alignment_skipped_steps", "Optimizer steps not applied so far: something was not finite"),
    "tokens_per_second": ("alignment_tokens_per_second", "Tokens a second over all ranks, padding not counted"),
    "step_seconds": ("alignment_step_seconds", "Duration of the last optimizer step"),
    "checkpoint_step": ("alignment_checkpoint_step", "Optimizer steps in the last verified checkpoint"),
    "checkpoint_pause_seconds": (
        "alignment_checkpoint_pause_seconds",
        "Pause of the training thread for the last checkpoint: its copy, and the rest of the one before",
    ),
    "heldout_accuracy": ("alignment_heldout_accuracy_ratio", "Held-out share of pairs with a positive reward margin"),
    "heldout_margin": ("alignment_heldout_reward_margin", "Held-out mean margin of implicit rewards, or of scores"),
    "heldout_likelier_chosen": ("alignment_heldout_likelier_chosen_ratio", "Held-out share: chosen is the likelier"),
    "heldout_nll": ("alignment_heldout_nll_nats", "Held-out negative log-likelihood of demonstrations, nats per token"),
    "heldout_perplexity": ("alignment_heldout_perplexity", "Exponential of alignment_heldout_nll_nats"),
    "rows": ("alignment_rows", "Rows done by the phase that runs"),
    "rows_planned": ("alignment_rows_planned", "Rows to be done by the phase that runs"),
    "servers": ("alignment_reference_servers", "Reference servers that answer"),
    "reward": ("alignment_reward_mean", "Mean reward of the step's completions, components summed by weight"),
    "reward_std": ("alignment_reward_std", "Standard deviation of the rewards of the step's completions"),
    "heldout_reward": ("alignment_heldout_reward_mean", "Mean reward of the completions of held-out prompts"),
    "reward_scale": (
        "alignment_reward_scale",
        "Running deviation of the scores, by which what the critic learns is divided",
    ),
    "kl": ("alignment_kl_nats", "KL of the policy towards the reference, nats per token"),
    "kl_coef": ("alignment_kl_coef", "Weight of the KL penalty"),
    "update_kl": ("alignment_update_kl_nats", "KL of the updated policy towards the one that sampled, nats per token"),
    "entropy": ("alignment_entropy_nats", "Entropy of the policy, nats per token, estimated from the sampled tokens"),
    "clip_ratio": ("alignment_clip_ratio", "Share of tokens whose policy loss was clipped"),
    "advantage_std": ("alignment_advantage_std", "Standard deviation of the advantages before whitening"),
    "completion_length": ("alignment_completion_length_tokens", "Mean tokens of a completion"),
    "finished": ("alignment_finished_ratio", "Share of completions that ended by themselves"),
    "mismatch": ("alignment_rollout_mismatch_nats", "Mean |policy - rollout log-prob| of the sampled tokens"),
    "importance_weight": ("alignment_importance_weight", "Mean truncated importance weight of policy over rollout"),
    "value_loss": ("alignment_value_loss", "Mean loss of the critic"),
    "value_clip_ratio": ("alignment_value_clip_ratio", "Share of tokens whose value loss was clipped"),
    "value_gradient_norm": ("alignment_value_gradient_norm", "Global L2 norm of the critic's gradient before clipping"),
    "explained_variance": ("alignment_explained_variance", "Share of the returns' variance that the critic explains"),
    "staleness": ("alignment_rollout_staleness_steps", "Mean age of the weights that sampled, in steps"),
    "weight_version": ("alignment_weight_version", "Version of the weights held here"),
    "delivery_seconds": (
        "alignment_delivery_seconds",
        "From the publication of weights until the slowest server has them",
    ),
    "rollout_servers": ("alignment_rollout_servers", "Rollout servers with weights that are new enough"),
    "reward_servers": ("alignment_reward_servers", "Reward servers that answer"),
    "reissued_requests": ("alignment_reissued_requests", "Requests sent again because their server was lost, so far"),
    "dropped_prompts": ("alignment_dropped_prompts", "Prompts that were not trained on, so far"),
    "prompts_trained": ("alignment_prompts_trained", "Prompts trained on, so far"),
    "function_timeouts": ("alignment_reward_function_timeouts", "Completions on which a reward function was ended"),
    "function_skips": ("alignment_reward_function_skips", "Completions that a reward function has skipped, so far"),
    "equal_groups": (
        "alignment_equal_groups_ratio",
        "Share of the step's prompts whose completions score the same",
    ),
    "silent_steps": ("alignment_silent_steps", "Steps whose completions taught nothing: advantages all 0, so far"),
}
"""Short name in code -> name and help in Prometheus."""


class _Idleness:
    """Seconds in which nobody was inside `working`, since the first was."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._idle = 0.0
        self._since: float | None = None

    @contextmanager
    def working(self) -> Iterator[None]:
        with self._lock:
            self._idle = self._seconds()
            self._since, self._inside = None, self._inside + 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._since = time.monotonic()

    def seconds(self) -> float:
        with self._lock:
            return self._seconds()

    def _seconds(self) -> float:
        return self._idle + (time.monotonic() - self._since if self._since is not None else 0.0)


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
        self._components = Gauge(
            "alignment_reward_component",
            "Mean of a component of the reward",
            (*_LABELS, "component"),
            registry=self.registry,
        )
        self._idleness = _Idleness()
        self._idle = Gauge("alignment_idle_seconds", "Seconds without work so far", _LABELS, registry=self.registry)
        memory = Gauge("alignment_resident_memory_bytes", "Peak resident memory", _LABELS, registry=self.registry)
        memory.labels(**self._labels).set_function(resident_peak_bytes)

    def set(self, short: str, value: float) -> None:
        """Sets the gauge of a short name of GAUGES."""
        self._gauges[short].labels(**self._labels).set(value)

    def add(self, short: str, value: float) -> None:
        """Adds to the gauge of a short name of GAUGES, for what is counted `so far`."""
        self._gauges[short].labels(**self._labels).inc(value)

    def set_component(self, name: str, value: float) -> None:
        """Sets the mean of a component of the reward, by its name in the spec."""
        self._components.labels(**self._labels, component=name).set(value)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Time outside is idle, from the first use on. From any number of threads."""
        self._idle.labels(**self._labels).set_function(self._idleness.seconds)
        with self._idleness.working():
            yield

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


def finite_ones(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without those of a step that was not applied, which say nothing; status holds numbers alone."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}
