"""The operator's own metrics."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from alignment_operator.plan.types import JobKey

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class _JobsByPhase(Collector):
    def __init__(self, phases: dict[JobKey, str]) -> None:
        self._phases = phases

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily("alignment_operator_jobs", "AlignmentJobs by phase", labels=["namespace", "phase"])
        tally = Tally((key.namespace, phase) for key, phase in self._phases.items())
        for (namespace, phase), count in sorted(tally.items()):
            family.add_metric([namespace, phase], count)
        yield family


class Telemetry:
    """Counters of one operator process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_seconds = Histogram(
            "alignment_operator_reconcile_seconds",
            "Seconds of one pass over one job",
            ["result"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "alignment_operator_queue_depth", "Jobs whose pass runs or waits for a slot", registry=self.registry
        )
        self.relists = Gauge(
            "alignment_operator_relists", "Full lists of a mirrored collection", ["kind"], registry=self.registry
        )
        self.unreadable = Gauge(
            "alignment_operator_unreadable_objects",
            "Objects of a mirrored collection that are left out because they cannot be read",
            ["kind"],
            registry=self.registry,
        )
        self.silent_seconds = Gauge(
            "alignment_operator_mirror_silent_seconds",
            "Seconds since the apiserver was last heard of a mirrored collection",
            ["kind"],
            registry=self.registry,
        )
        self.dropped_events = Counter(
            "alignment_operator_dropped_events",
            "Events that were not posted: refused, or too many at once",
            registry=self.registry,
        )
        self.platform_errors = Counter(
            "alignment_operator_platform_errors",
            "Refused changes of the platform's configuration",
            registry=self.registry,
        )
        self.leader = Gauge("alignment_operator_leader", "1 while this process holds the Lease", registry=self.registry)
        self.leads = False
        self._phases: dict[JobKey, str] = {}
        self.registry.register(_JobsByPhase(self._phases))
        self.beat()

    def saw_phase(self, key: JobKey, phase: str | None) -> None:
        """The job's phase as last planned; None when it is gone."""
        if phase is None:
            self._phases.pop(key, None)
        else:
            self._phases[key] = phase

    def lead(self) -> None:
        """The lease is ours: from here on silence is a fault."""
        self.leads = True
        self.leader.set(1)
        self.beat()

    def beat(self) -> None:
        """The operator is alive: a pass has ended, or there was none to make."""
        self._beat = time.monotonic()

    @property
    def silence_seconds(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._beat

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self.registry)
