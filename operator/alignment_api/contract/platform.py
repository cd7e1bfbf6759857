"""What the platform team sets: pools, defaults for storage, output and image. Helm values -> a ConfigMap."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from alignment_api.contract.base import Contract
from alignment_api.contract.pod_template import dotted, template_problems
from alignment_api.contract.policy import Policy
from alignment_api.contract.quantity import Quantity
from alignment_api.contract.roles import PoolName
from alignment_api.contract.sources import WritableSource


class Gpu(Contract):
    """The GPUs of a pool."""

    resource: str = "nvidia.com/gpu"
    """Resource name of the device plugin."""
    product: str
    """Name for people, for example H100-SXM5."""
    memory_gib: Annotated[float, Field(gt=0)]
    """Memory of one GPU, GiB."""
    bf16: bool = True
    """Whether it computes bf16 in hardware: compute capability 8.0 and up. Of older ones (V100, T4) say false."""


class Pool(Contract):
    """A set of nodes."""

    node_selector: dict[str, str] = {}
    """Labels of its nodes."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Tolerations of the pods sent there."""
    gpu: Gpu | None = None
    """Its GPUs; absent: none, and ranks are CPU processes."""
    notice_seconds: Annotated[int, Field(ge=5, le=86_400)] = 120
    """Seconds a pod gets between SIGTERM and SIGKILL. Cloud spot gives 30 to 120."""
    limit_cpu: bool = False
    """Whether pods are limited to the CPU that they ask for, instead of using what is spare: for namespaces whose quota
    asks for a limit, or whose LimitRange gives one that is too small."""
    pod_template: dict[str, Any] = {}
    """A patch over every pod sent there. It has the last word: no job's podTemplate can undo it."""

    @field_validator("pod_template")
    @classmethod
    def _check_template(cls, template: dict[str, Any]) -> dict[str, Any]:
        for path, message in template_problems(template):
            raise ValueError(f"{dotted(path)}: {message}")
        return template


class Pools(Contract):
    """Trainable roles go to onDemand, frozen ones to spot, prepare to cpu."""

    on_demand: Pool = Pool()
    """Nodes that stay."""
    spot: Pool = Pool(notice_seconds=30)
    """Nodes that may be reclaimed."""
    cpu: Pool | None = None
    """Nodes for prepare; absent: onDemand, without a GPU."""

    def named(self, name: PoolName) -> Pool:
        """The pool of that name; `cpu` falls back to onDemand."""
        pools = {"onDemand": self.on_demand, "spot": self.spot, "cpu": self.cpu or self.on_demand}
        return pools[name]


class PlatformStorage(Contract):
    """Volumes the operator makes where a job names none."""

    storage_class_name: str | None = None
    """Storage class; absent: the cluster's default."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteOnce"
    """ReadWriteOnce, which every class has: the pods of a stage that share a volume run on one node. A gang on several
    nodes needs ReadWriteMany."""
    size: Quantity = "100Gi"
    """Size of a job's storage volume and of its output volume."""


class PlatformOutput(Contract):
    """Where models go when a job does not say."""

    destination: WritableSource
    """A folder; each job gets its own below it, named namespace/job."""


class PinnedPlatform(Contract):
    """What of the platform a job keeps from its admission to its end: an upgrade changes nothing of a job that runs."""

    pools: Pools = Pools()
    """Where roles go."""
    storage: PlatformStorage = PlatformStorage()
    """Volumes for checkpoints."""
    output: PlatformOutput | None = None
    """Where models go."""
    image: str = "alignment-trainer:latest"
    """Trainer image of this release."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Pull policy of the trainer image."""
    gang: Literal["none", "podGroup"] = "none"
    """How pods of a gang are scheduled together. `podGroup`: Kubernetes' own (scheduling.k8s.io/v1beta1, from 1.37 with
    the feature gate GenericWorkload on in apiserver, controller-manager and scheduler: a served API does not prove it).
    """


class Platform(PinnedPlatform):
    """Everything that belongs to the platform team."""

    policy: Policy = Policy()
    """What a job may set of its pods."""
    ingress_from: tuple[dict[str, Any], ...] = ()
    """NetworkPolicy peers let in at the HTTP port besides a job's own pods: the operator and the scraper of metrics."""

    def pinned(self) -> PinnedPlatform:
        """What a job that is admitted now keeps."""
        return PinnedPlatform(**{name: getattr(self, name) for name in PinnedPlatform.model_fields})

    def as_pinned(self, pinned: PinnedPlatform | None) -> Platform:
        """The platform as a job that keeps `pinned` of it sees it; itself where nothing differs."""
        if pinned is None or pinned == self.pinned():
            return self
        return self.model_copy(update={name: getattr(pinned, name) for name in PinnedPlatform.model_fields})
