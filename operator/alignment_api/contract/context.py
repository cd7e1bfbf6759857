"""What passes between a runtime and the process of a role: who it is, how it fares, how it ended."""

from __future__ import annotations

from typing import Literal

from alignment_api.contract.base import Contract
from alignment_api.contract.platform import Gpu
from alignment_api.contract.roles import StageName
from alignment_api.contract.status import (
    CheckpointStatus,
    DataReport,
    EvaluationReport,
    MicroBatchReport,
    ModelReport,
    PrecisionReport,
    Progress,
)

CONTEXT_VARIABLE = "ALIGNMENT_CONTEXT"
"""Environment variable that holds a Context as JSON."""

ADDRESS_VARIABLE = "ALIGNMENT_ADDRESS"
"""Environment variable that holds the address by which peers reach the process, where its runtime learns it too late
for the Context: a pod gets its own once it runs. Absent: Context.host."""


class Pins(Contract):
    """What `prepare` has pinned for every role of the job."""

    model: ModelReport
    """The job's model."""
    precision: PrecisionReport
    """In what the job computes."""
    micro_batch: MicroBatchReport | None = None
    """How much it computes at once; absent where another release has prepared it."""
    reward_models: dict[str, ModelReport] = {}
    """Reward models that existed before the job, by the reward's name."""


class Context(Contract):
    """Who a role's process is and where things are. Made by a runtime; the spec itself is in `job_file`."""

    job: str
    """Name of the job."""
    uid: str
    """The job's identity: its UID, on a laptop the run folder's."""
    stage: StageName
    """The stage that runs."""
    role: str
    """A key of ROLES."""
    index: int
    """Place among the role's replicas."""
    life: int
    """Attempt or incarnation."""
    replicas: int
    """Pods of the role in this stage (of a gang: the nodes of its process group)."""
    processes: int
    """Ranks in this instance: its GPUs, or CPU processes."""
    gpus: int
    """GPUs it was planned with; it fails at once where it finds fewer."""
    training_gpu: Gpu | None = None
    """The GPUs that the job trains on, wherever this process runs; absent: it trains on CPUs."""
    free_memory: int | None = None
    """Of `prepare`: bytes that a stage's processes may take together on the machine that they share; absent where each
    pod has memory of its own."""
    job_file: str
    """The validated, defaulted AlignmentJob as YAML (or JSON, its subset)."""
    storage: str | None
    """The job's storage: a path here, or s3://bucket/prefix; None in a role that neither reads nor writes there."""
    output: str
    """The output's folder: a path here, or s3://bucket/prefix."""
    sources: dict[str, str]
    """The spec's pvc:// and file:// sources, each as a path here. hf:// and s3:// ones are not listed."""
    volumes: str | None = None
    """The folder in which every claim is mounted by its name; absent where there are none."""
    peers: dict[str, tuple[str, ...]]
    """Role -> base URLs of its servers. A host may resolve to several addresses, each a server; they come and go."""
    host: str
    """Address to listen on."""
    port: int
    """Port to listen on."""
    token_file: str
    """The job's bearer token, demanded on every path but /healthz, /status and /metrics."""
    outcome_file: str
    """Where the Outcome goes: a pod's termination message."""
    pins: Pins | None = None
    """What `prepare` has pinned, for roles that have no storage; absent for those that read it there, and while nothing
    is pinned yet."""
    rendezvous: str
    """host:port of the gang's first process; used where there is more than one rank."""
    notice_seconds: int
    """Seconds between SIGTERM and SIGKILL: a checkpoint must be done by then."""
    scratch: str
    """A folder in memory, of this life alone: weights on their way. Gone with it."""


class Failure(Contract):
    """Why a role's process ended badly."""

    reason: str
    """CamelCase word: InvalidData, ModelNotFound, StorageFull, OutOfMemory, ..."""
    message: str
    """What was found and what to write instead."""
    retryable: bool
    """False for a user's mistake: the job fails at once."""


class Outcome(Contract):
    """How a role's process ended, as its termination message (at most 4096 bytes)."""

    result: Literal["succeeded", "failed", "interrupted"]
    """`interrupted`: asked to go (SIGTERM), exit code 143."""
    failure: Failure | None = None
    """Set where it failed."""
    step: int | None = None
    """Optimizer steps done."""
    checkpoint: CheckpointStatus | None = None
    """The last verified commit."""
    data: DataReport | None = None
    """Of prepare."""
    model: ModelReport | None = None
    """Of prepare."""
    precision: PrecisionReport | None = None
    """Of prepare."""
    micro_batch: MicroBatchReport | None = None
    """Of prepare."""
    reward_models: dict[str, ModelReport] | None = None
    """Of prepare: reward models that exist, by the reward's name."""
    functions_network: str | None = None
    """Of prepare: why reward functions that ask for no network keep that of their pod; absent where they have none."""
    evaluation: EvaluationReport | None = None
    """Of the evaluator, and of the policy in stage `reward`."""


class InstanceStatus(Contract):
    """GET /status of a role's process: who it is, and numbers only."""

    uid: str = ""
    """The job's identity, as in its Context."""
    role: str = ""
    """A key of ROLES."""
    index: int = 0
    """Place among the role's replicas."""
    life: int = 0
    """Attempt or incarnation."""
    state: str
    """What it does, in a few words: `loading the model`, `training`."""
    ready: bool
    """What /healthz says: 200 or 503."""
    progress: Progress | None = None
    """How far it is."""
    metrics: dict[str, float] = {}
    """The handful a person looks at."""
    checkpoint: CheckpointStatus | None = None
    """The last verified commit."""
    data: DataReport | None = None
    """Of prepare, once the data is good."""
    model: ModelReport | None = None
    """Of prepare, once the model is pinned."""
    precision: PrecisionReport | None = None
    """Of prepare, once it is decided."""
    micro_batch: MicroBatchReport | None = None
    """Of prepare, once it is decided."""
    memory_bytes: int = 0
    """Peak resident memory (or GPU memory) of the process."""

    def is_of(self, uid: str, role: str, index: int, life: int) -> bool:
        """Whether it is the answer of this instance of this job: an address may be another's by now."""
        return (self.uid, self.role, self.index, self.life) == (uid, role, index, life)
