"""What planning takes and gives. Values only; nothing here reads or sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from alignment_api.contract.context import InstanceStatus, Outcome
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.roles import PoolName, StageName
from alignment_api.contract.status import AlignmentJobStatus


@dataclass(frozen=True, order=True)
class JobKey:
    """Which job."""

    namespace: str
    name: str


@dataclass(frozen=True)
class PodView:
    """A pod (or a process of the local runtime) as it is seen."""

    name: str
    uid: str
    role: str
    index: int
    life: int
    """Attempt or incarnation."""
    stage: StageName
    phase: Literal["Pending", "Running", "Succeeded", "Failed"]
    """Of its process: containers beside it may run on."""
    created_at: datetime
    node: str = ""
    """Empty before it is scheduled."""
    avoids: tuple[str, ...] = ()
    """Nodes that it was made to keep away from; nothing changes that."""
    version: str | None = None
    """Of the object that was seen, where the runtime has versions."""
    ready: bool = False
    gated: bool = False
    """Carries our scheduling gate."""
    gone_by: datetime | None = None
    """Set when it is being deleted: when its grace period is over."""
    lingers: bool = False
    """Its process has ended and containers beside it have not: it holds its node still."""
    disrupted: bool = False
    """Preempted, evicted, drained, or ended by what its node did."""
    rejected: bool = False
    """Its node turned it away on arrival: its process never ran."""
    node_lost: bool = False
    """Its node is unreachable or gone."""
    image: str = ""
    """Of our container, as the spec names it."""
    image_id: str = ""
    """Of our container, as the kubelet names what it runs; empty before, and on a laptop."""
    exit_code: int | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    """Why it ended or waits: OOMKilled, Evicted, ImagePullBackOff, Unschedulable, ..."""
    message: str | None = None
    """The same for people."""
    status: InstanceStatus | None = None
    """Polled from the process: its word, until its outcome."""

    @property
    def ended(self) -> bool:
        """Its process has ended."""
        return self.phase in ("Succeeded", "Failed")


@dataclass(frozen=True)
class VolumeView:
    """A PersistentVolumeClaim that the spec names."""

    access_modes: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """What the runtime was refused, and has not got since."""

    what: str
    """The object: `Kind name`."""
    reason: str
    """CamelCase word."""
    message: str
    """The apiserver's own words."""


@dataclass(frozen=True)
class Observed:
    """Everything a plan depends on."""

    job: AlignmentJob
    platform: Platform
    """As the job keeps it: with what was pinned at its admission."""
    pods: tuple[PodView, ...] = ()
    volumes: Mapping[str, VolumeView] = field(default_factory=dict)
    """Claim -> what it is, for the claims of the spec that exist."""
    nodes: Mapping[PoolName, int] | None = field(default_factory=dict)
    """Schedulable nodes of each pool now; a pool that is absent was not looked at. None: nodes cannot be listed."""
    refused: tuple[Refusal, ...] | None = None
    """What stands refused of the job's objects; None where nothing was asked for yet."""
    own_files: bool = False
    """file:// paths are the user's own and outlive the processes (a laptop); there are no claims then."""


@dataclass(frozen=True)
class Instance:
    """A role instance that must exist. Typed; no addresses and no paths: the runtime resolves those."""

    name: str
    """<job>-<role>-<index>-<life>-<hash>; also the pod's name."""
    role: str
    index: int
    life: int
    stage: StageName
    attempt: int
    """Attempt of the gang in which it is made: it reads that attempt's ConfigMap. 0 before the first."""
    pool: PoolName
    replicas: int
    processes: int
    """Ranks in it."""
    gpus: int
    cpu: str
    """Kubernetes quantity: cores."""
    memory: str
    """Kubernetes quantity: bytes."""
    ephemeral_storage: str
    """Kubernetes quantity: bytes of the node's disk."""
    ephemeral_storage_limit: str | None
    """None: not limited."""
    scratch_gib: int = 0
    """Part of the memory that holds weights on their way."""
    gang: int = 1
    """Pods that are scheduled and restarted together with it, itself included."""
    peers: tuple[str, ...] = ()
    """Roles whose servers it calls."""
    beside: tuple[str, ...] = ()
    """Roles of its stage, its own among them, whose pods run on one node with it, for they share a volume that no other
    node can mount then. Empty: it runs anywhere."""
    gated: bool = False
    """Must not be scheduled before `Plan.release` names it."""
    avoid: tuple[str, ...] = ()
    """Names of nodes that it must not be scheduled to."""


@dataclass(frozen=True)
class Removal:
    """A pod that must go."""

    name: str
    uid: str
    grace: timedelta | None = None
    """None: the pod's own grace period."""
    version: str | None = None
    """It must not have changed since: it may have ended. None: whatever it is now, it has been counted."""


@dataclass(frozen=True)
class Support:
    """What pods lean on: the spec's ConfigMap of this attempt, the token's Secret, Services, volumes."""

    attempt: int
    makes_storage: bool
    """No storage was named: make a volume owned by the job."""
    makes_output: bool
    """No output was named: make a volume that outlives the job."""
    serving_roles: tuple[str, ...]
    """Roles that have a headless Service of ready pods."""
    gang_roles: tuple[str, ...]
    """Roles whose pods find each other by name, ready or not."""
    gang: int = 0
    """Pods of the stage's gang; 0 where nothing trains."""


@dataclass(frozen=True)
class Plan:
    """What must exist, what must go and what to remember."""

    status: AlignmentJobStatus
    support: Support | None = None
    """None: the job has ended, its supporting objects must go (its volumes stay)."""
    create: tuple[Instance, ...] = ()
    delete: tuple[Removal, ...] = ()
    release: tuple[str, ...] = ()
    """Names of gated pods whose gate opens now."""
    next_look: timedelta | None = None
    """When to plan again if nothing happens."""
