"""A cluster in one dictionary: it obeys a plan and lets a test play kubelet, node and user.

Planning is a pure function of what is seen; this holds what is seen. It serves no API and replaces none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from alignment_api.contract.context import Failure, InstanceStatus, Outcome
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.status import AlignmentJobStatus, Condition, DataReport, ModelReport
from alignment_api.derived.stages import stages_of
from alignment_operator.plan.make_plan import make_plan
from alignment_operator.plan.types import Observed, Plan, PodView, Refusal, VolumeView

START = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
GRACE = timedelta(seconds=30)
DATA = DataReport(format="preferences", rows=900, evaluation_rows=100, fingerprint="d0")
MODEL = ModelReport(parameters=1_000_000, fingerprint="m0")


def make_job(spec: Mapping[str, Any] | None = None, name: str = "helpful", uid: str = "uid-1") -> AlignmentJob:
    """A DPO job whose volumes exist, with `spec` over it."""
    base: dict[str, Any] = {
        "model": {"source": "pvc://models/base"},
        "data": {"source": "pvc://data/pairs.jsonl"},
        "algorithm": {"dpo": {}},
        "storage": {"source": "pvc://work/helpful"},
        "output": {"destination": "pvc://results/helpful"},
    }
    return AlignmentJob.model_validate(
        {
            "apiVersion": "alignment.run/v1alpha1",
            "kind": "AlignmentJob",
            "metadata": {"name": name, "namespace": "team", "uid": uid},
            "spec": base | dict(spec or {}),
        }
    )


def ppo_spec(**roles: Any) -> dict[str, Any]:
    """A PPO job that trains its reward model first."""
    rewards = [{"train": {"preferences": {"source": "pvc://data/judged.jsonl"}}}, {"function": {"numericAnswer": {}}}]
    return {"algorithm": {"ppo": {"rewards": rewards}}, "roles": roles}


@dataclass
class SmallCluster:
    """Pods, the recorded job and a clock."""

    job: AlignmentJob = field(default_factory=make_job)
    platform: Platform = field(default_factory=Platform)
    now: datetime = START
    pods: dict[str, PodView] = field(default_factory=dict)
    nodes: dict[Any, int] | None = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    """Pods that exist and that the operator's mirror does not show yet."""
    undying: set[str] = field(default_factory=set)
    """Pods that nothing kills, on nodes that live."""
    refused: tuple[Refusal, ...] | None = None
    created: int = 0

    def observe(self) -> Observed:
        shared = VolumeView(("ReadWriteMany",))
        volumes = dict.fromkeys(("models", "data", "work", "results", "judged", "bases", "judges", "code"), shared)
        seen = tuple(pod for pod in self.pods.values() if pod.name not in self.unseen)
        platform = self.platform.as_pinned(self.job.status.platform)
        return Observed(self.job, platform, seen, volumes, self.nodes, self.refused)

    def look(self) -> tuple[object, ...]:
        """All of the cluster that changes, to be compared."""
        return self.job, self.now, dict(self.pods), frozenset(self.unseen)

    def plan(self) -> Plan:
        return make_plan(self.observe(), self.now)

    def reconcile(self) -> Plan:
        plan = self.plan()
        self.record(plan)
        self.apply(plan)
        return plan

    def record(self, plan: Plan) -> None:
        self.job = self.job.model_copy(update={"status": plan.status})

    def apply(self, plan: Plan) -> None:
        for instance in plan.create:
            self.create(instance)
        for name in plan.release:
            self.change(name, gated=False)
        for removal in plan.delete:
            self.delete(removal.name)

    def create(self, instance: Any) -> None:
        if instance.name in self.pods:
            return  # AlreadyExists is the lock
        self.created += 1
        self.pods[instance.name] = PodView(
            name=instance.name,
            uid=f"pod-{self.created}",
            role=instance.role,
            index=instance.index,
            life=instance.life,
            stage=instance.stage,
            phase="Pending",
            created_at=self.now,
            gated=instance.gated,
            avoids=instance.avoid,
        )

    def delete(self, name: str) -> None:
        """As the API does it: a pod that does not run goes at once, another gets its grace period."""
        pod = self.pods[name]
        if pod.phase != "Running" and not pod.lingers:
            del self.pods[name]
        elif pod.gone_by is None:
            self.change(name, gone_by=self.now + GRACE, ready=False)

    def change(self, name: str, **fields: Any) -> None:
        self.pods[name] = replace(self.pods[name], **fields)

    def start(self, name: str) -> None:
        self.change(name, phase="Running", ready=True)

    def succeed(self, name: str) -> None:
        outcome = Outcome(result="succeeded", data=DATA, model=MODEL)
        self.change(name, phase="Succeeded", ready=False, exit_code=0, outcome=outcome)

    def fail(self, name: str, retryable: bool = True, reason: str = "OutOfMemory") -> None:
        failure = Failure(reason=reason, message="what was found", retryable=retryable)
        outcome = Outcome(result="failed", failure=failure)
        self.change(name, phase="Failed", ready=False, exit_code=1, outcome=outcome)

    def reject(self, name: str, node: str) -> None:
        """Its node turns it away on arrival."""
        rejected = {"phase": "Failed", "ready": False, "disrupted": True, "rejected": True}
        self.change(name, **rejected, node=node, reason="UnexpectedAdmissionError")

    def evict(self, name: str) -> None:
        self.change(name, gone_by=self.now + GRACE, disrupted=True, ready=False)

    def end_evicted(self, name: str) -> None:
        """Its process obeys SIGTERM; torchrun says 1 for a worker's 143."""
        self.change(name, phase="Failed", exit_code=1, reason="Error")

    def lose_node(self, name: str) -> None:
        self.change(name, node_lost=True, ready=False)

    def vanish(self, name: str) -> None:
        del self.pods[name]

    def poll(self, name: str, **fields: Any) -> None:
        self.change(name, status=InstanceStatus(state="working", ready=True, **fields))

    def wait(self, seconds: float) -> None:
        """Time passes; kubelets that live end what is being deleted when its grace is over."""
        self.now += timedelta(seconds=seconds)
        for pod in list(self.pods.values()):
            dies = not pod.node_lost and pod.name not in self.undying
            if pod.gone_by is not None and pod.gone_by <= self.now and dies:
                del self.pods[pod.name]

    def respec(self, **fields: Any) -> None:
        metadata = self.job.metadata.model_copy(update={"generation": self.job.metadata.generation + 1})
        spec = self.job.spec.model_copy(update=fields)
        self.job = self.job.model_copy(update={"spec": spec, "metadata": metadata})

    def scale(self, role: str, replicas: int) -> None:
        roles = self.job.spec.roles
        scaled = getattr(roles, role).model_copy(update={"replicas": replicas})
        self.respec(roles=roles.model_copy(update={role: scaled}))

    @property
    def status(self) -> AlignmentJobStatus:
        return self.job.status

    def pod(self, role: str, index: int = 0) -> PodView:
        """The newest pod of a place."""
        return max((p for p in self.pods.values() if (p.role, p.index) == (role, index)), key=lambda p: p.life)

    def names(self, role: str) -> list[str]:
        return sorted(pod.name for pod in self.pods.values() if pod.role == role)

    def tally(self, role: str) -> tuple[int, int]:
        """Failures and disruptions counted."""
        found = next(entry for entry in self.status.roles if entry.name == role)
        return found.failures, found.disruptions

    def condition(self, kind: str) -> Condition | None:
        return next((c for c in self.status.conditions if c.type == kind), None)

    def run_until(self, stage: str) -> None:
        """Lets every pod do well until the stage's pods are ready."""
        for _ in range(20):
            self.reconcile()
            current = [pod for pod in self.pods.values() if pod.stage == stage and pod.gone_by is None]
            if self.status.stage == stage and current and all(pod.ready for pod in current):
                return
            self.do_well(holding=stage)
        raise AssertionError(f"stage {stage} was not reached: {self.status}")

    def leads(self, pod: PodView) -> bool:
        """Whether the end of this pod's role ends its stage."""
        return any((stage.name, stage.lead) == (pod.stage, pod.role) for stage in stages_of(self.job.spec))

    def do_well(self, holding: str = "") -> None:
        """One round in which pods start, and leads that were ready (but for those of one stage) end well."""
        for pod in list(self.pods.values()):
            if pod.gone_by is not None or pod.ended:
                continue
            if pod.phase == "Pending" and not pod.gated:
                self.start(pod.name)
            elif pod.ready and self.leads(pod) and pod.stage != holding:
                self.succeed(pod.name)
        self.wait(30)
