"""What the operator reports: the status of an AlignmentJob."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from alignment_api.contract.base import Contract
from alignment_api.contract.platform import PinnedPlatform
from alignment_api.contract.roles import PoolName, StageName

Phase = Literal["Pending", "Running", "Suspended", "Complete", "Failed"]
ConditionType = Literal[
    "Admitted",
    "DataReady",
    "RolesReady",
    "Training",
    "Suspended",
    "Complete",
    "Failed",
    "CheckpointVerified",
    "PoolsAvailable",
    "GangScheduling",
    "ObjectsCreated",
    "ImagePinned",
    "FunctionsOffline",
]
"""Those that we set; others may add theirs."""
_CONDITION_TYPE = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
_KEYED_BY_TYPE = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


class Condition(Contract):
    """A Kubernetes condition (metav1.Condition)."""

    type: Annotated[str, Field(pattern=_CONDITION_TYPE, max_length=316)]
    """What it speaks of. Others may add conditions of their own, with their domain before the name."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: str
    """One CamelCase word for programs."""
    message: str = ""
    """A sentence for people: what was found and what to do."""
    last_transition_time: datetime
    """When `status` last changed."""
    observed_generation: int | None = None
    """The generation it was derived from."""


class Interval(Contract):
    """A mean with its 95% interval."""

    value: float
    """The mean."""
    low: float
    """Lower bound."""
    high: float
    """Upper bound."""
    count: int
    """Held-out pairs or completions."""


Evaluated = dict[str, Interval]
"""Held-out figures at one moment, by name.

Of pairs: `accuracy` (share with a positive reward margin, ties a half: 0.5 of the reference itself) and `margin` (its
mean). Rewards are what the loss compares: log-ratios to the reference times beta of dpo, ipo and kto, mean log-probs
times beta of simpo, log odds of orpo, scores of reward. Of pairs, but for reward: `likelierChosen`. kto: `accuracy`
(share whose reward is positive where desirable, negative where not) and `margin` (mean reward of the desirable above
that of the others, where there are both). sft: `nll` (nats per token that is trained on) and `perplexity`, its
exponential. ppo and grpo: `reward` (weighted sum), `reward/<component>` of each reward, `length` (tokens), `finished`
(share of completions that end by themselves), `kl` (nats per token towards the reference, where there is one).
"""


class EvaluationReport(Contract):
    """evaluation.json."""

    before: Evaluated
    """The model as it came; empty of a reward model whose head is new."""
    after: Evaluated
    """The exported model."""


class StageStatus(Contract):
    """One stage that has started."""

    name: StageName
    """prepare, reward, train or evaluate."""
    started_at: datetime
    """When its first pod was wanted."""
    finished_at: datetime | None = None
    """When its lead ended well."""
    evaluation: EvaluationReport | None = None
    """What came of it on held-out rows: of stage `reward` the reward model's accuracy."""


class RoleStatus(Contract):
    """One role of the job, over its whole life."""

    name: str
    """The role."""
    pool: PoolName
    """Where its pods go."""
    desired: int = 0
    """Pods wanted now."""
    ready: int = 0
    """Pods ready now."""
    disruptions: int = 0
    """Losses through node or control plane so far, for people; a gang's loss counts once."""
    failures: int = 0
    """Exits with an error so far, for people; a gang's counts once. What budgets allow counts for each instance."""


class BudgetUse(Contract):
    """What the ends of an instance have used of the budgets within a day; lasting progress sets it back to nothing."""

    since: datetime
    """When the first of these ends was counted; after a day counting begins anew."""
    failures: int = 0
    """Exits with an error."""
    disruptions: int = 0
    """Losses through node or control plane."""
    waits: int = 0
    """Ends after which the next life had to wait, each twice as long as after the one before."""
    not_before: datetime | None = None
    """The next life starts no sooner."""
    last: str = ""
    """The newest of these ends, in words."""


class InstanceRecord(Contract):
    """One slot of a role (its index among the replicas): its newest life, written before the pod is created.

    An end is counted when its record gets `end`, so it is counted once; the next life takes the record.
    """

    role: str
    """Its role."""
    index: int
    """Its index among the role's replicas."""
    life: int
    """Attempt of a trainable gang, incarnation of a frozen pod."""
    uid: str | None = None
    """UID of its pod once seen; a pod that was seen and is gone was lost."""
    end: Literal["succeeded", "failed", "lost", "removed"] | None = None
    """How this life ended: `lost` by a disruption, `removed` by a plan (suspended, stage over, no longer wanted)."""
    reason: str | None = None
    """Why, as one CamelCase word; of a gang where the end began."""
    budget: BudgetUse | None = None
    """What it has used of the budgets; a gang's stands with its first pod."""
    starting_since: datetime | None = None
    """Since when this life may get ready; absent once it has been, and as long as its gate is closed."""
    unready_since: datetime | None = None
    """Since when the slot has had no ready pod though one may be scheduled, over all lives that were lost or failed."""


class AvoidedNode(Contract):
    """A node that has turned a pod of this job away."""

    name: str
    """The node."""
    until: datetime
    """Until then no new pod of this job goes there."""
    reason: str
    """What it said, as one CamelCase word."""


class ImagePin(Contract):
    """What an image was when the first pod of the job ran it."""

    image: str
    """As the pod's spec named it."""
    id: str
    """As the kubelet named what it ran: `repository@sha256:...`, or what only its node knows."""


class Progress(Contract):
    """How far the running stage is."""

    step: int = 0
    """Optimizer steps done (rows done, in prepare)."""
    total_steps: int = 0
    """Of so many."""
    tokens_per_second: float | None = None
    """Training tokens per second, padding not counted, over all ranks."""
    eta_seconds: int | None = None
    """Estimated seconds to the end of the stage."""


class CheckpointStatus(Contract):
    """The last verified commit."""

    step: int
    """Optimizer steps it holds."""
    verified_at: datetime
    """When it was sealed: every part flushed to the disk, its checksum taken while it was written."""


class DataReading(Contract):
    """How rows of a source were read."""

    source: str
    """As the manifest says it."""
    layout: str
    """Form of the answers, and where the prompt was found: `messages; prompt = all but the last assistant turn`."""
    rows: int
    """Rows of the source that were read so."""
    unread: list[str] = []
    """Columns of theirs that were not read, and keys of messages in those that were: `messages[].name`."""


class DataReport(Contract):
    """What `prepare` found."""

    format: str
    """The format found by looking."""
    rows: int
    """Training rows; one that holds several pairs counts as many times."""
    evaluation_rows: int
    """Held-out rows."""
    invalid_rows: int = 0
    """Rows dropped (data.onInvalid: drop)."""
    too_long_rows: int = 0
    """Rows dropped (data.onTooLong: drop)."""
    truncated_rows: int = 0
    """Rows whose prompt was cut (data.onTooLong: truncatePrompt)."""
    fingerprint: str
    """SHA-256 of the tokenized rows."""
    revision: str | None = None
    """Commit of an hf:// data set; of an s3:// one a SHA-256 over the names, sizes and ETags of its objects."""
    readings: list[DataReading] = []
    """How rows were read, by source and layout."""


class ProbeReport(Contract):
    """How far the trainer's numbers over packed rows are from those of each text alone; rounding, or it is refused."""

    model: Literal["whole", "cut"]
    """`whole`: its own weights. `cut`: a few of its layers with random weights, where the whole does not fit into the
    memory of `prepare`, or its weights hardly depend on the prompt."""
    alone: float
    """Largest difference to transformers' forward of a text alone: nats of a token, or share of the largest score."""
    neighbour: float
    """Largest change of one completion when another stands beside it, alike."""


class ModelShape(Contract):
    """What a decoder's memory follows from. Widths are numbers of a token."""

    layers: int
    """Decoder layers."""
    hidden: int
    """Width of what passes from layer to layer."""
    queries: int
    """Heads times head size."""
    keys: int
    """Heads of keys times head size."""
    inner: int
    """Inner width of the MLP; of experts that of all that a token passes through."""
    vocabulary: int
    """Tokens that it knows."""
    embeddings: int
    """Weights of the embedding, and of the language-model head where that is a matrix of its own."""
    tied: bool
    """Whether the language-model head is the embedding."""


class ModelReport(Contract):
    """The model as pinned by `prepare`."""

    parameters: int
    """Its parameters."""
    fingerprint: str
    """SHA-256 over the files of config, tokenizer and weights."""
    shape: ModelShape | None = None
    """What its memory follows from; absent where another release has pinned it."""
    revision: str | None = None
    """Commit of an hf:// model; of an s3:// one a SHA-256 over the names, sizes and ETags of its objects."""
    dropout: dict[str, float] = {}
    """What its config says of dropout and other noise: it is trained without, the exported config keeps it."""
    probe: ProbeReport | None = None
    """The proof that it can be trained over packed rows."""


Precision = Literal["bf16", "fp32"]


class PrecisionReport(Contract):
    """In what the job computes, for all of its roles and to its end."""

    value: Precision
    """bf16 or fp32."""
    why: str
    """Who said so: the spec, or the devices that it trains on."""


class LearningRateReport(Contract):
    """With what the job trains, to its end."""

    value: float
    """Peak learning rate of AdamW."""
    why: str
    """Who said so: the spec, or the default of its algorithm."""


class MicroBatchReport(Contract):
    """How much a rank or server computes at once, for all roles of the job and to its end."""

    tokens: int
    """Of a micro-batch."""
    recompute_layers: int
    """Layers whose activations are computed again in the backward pass."""
    why: str
    """Who said so: the spec, or the memory that it must fit in."""


class Artifacts(Contract):
    """Where results are."""

    storage: str | None = None
    """Checkpoints and prepared data."""
    model: str | None = None
    """The exported model."""
    evaluation: str | None = None
    """evaluation.json."""


class AlignmentJobStatus(Contract):
    """Derived from what is observed, written once per pass."""

    observed_generation: int | None = None
    """The generation this status speaks of."""
    phase: Phase = "Pending"
    """One word for the columns; derived from the conditions."""
    conditions: Annotated[tuple[Condition, ...], Field(json_schema_extra=_KEYED_BY_TYPE)] = ()
    """What holds, with reasons; of each type one."""
    algorithm: str | None = None
    """The spec's algorithm."""
    stage: StageName | None = None
    """The stage that runs, or the last one."""
    stages: tuple[StageStatus, ...] = ()
    """Every stage that has started."""
    attempt: int = 0
    """Lives of the trainable gang so far."""
    roles: tuple[RoleStatus, ...] = ()
    """Every role of the job."""
    ready: str = "0/0"
    """Ready pods of those wanted, for the columns."""
    instances: tuple[InstanceRecord, ...] = ()
    """The newest life of every slot that was ever wanted."""
    avoided_nodes: tuple[AvoidedNode, ...] = ()
    """Nodes that new pods of this job keep away from for a while."""
    progress: Progress | None = None
    """How far the running stage is."""
    progress_text: str | None = None
    """412/781, for the columns."""
    eta: str | None = None
    """2h10m, for the columns."""
    stepped_at: datetime | None = None
    """When `progress` last moved, or the work on it last began; absent while nothing can move it."""
    metrics: dict[str, float] = {}
    """The handful a person looks at: loss, margin, accuracy, ..."""
    checkpoint: CheckpointStatus | None = None
    """The last verified commit."""
    furthest_step: int = 0
    """The highest step of this stage that a verified checkpoint has held: more of it refills the budgets."""
    data: DataReport | None = None
    """What `prepare` found."""
    model: ModelReport | None = None
    """The model as pinned."""
    precision: PrecisionReport | None = None
    """In what the job computes, as `prepare` decided or the spec says."""
    learning_rate: LearningRateReport | None = None
    """Peak learning rate of stage `train`, kept as it was when the job was admitted."""
    micro_batch: MicroBatchReport | None = None
    """How much is computed at once, as `prepare` decided or the spec says."""
    reward_models: dict[str, ModelReport] | None = None
    """Reward models that existed before the job, as pinned, by the reward's name."""
    evaluation: EvaluationReport | None = None
    """Held-out figures before and after."""
    artifacts: Artifacts = Artifacts()
    """Where results are."""
    platform: PinnedPlatform | None = None
    """Image, pools, output and all else that the job keeps of the platform as it was when the job was admitted."""
    images: tuple[ImagePin, ...] = ()
    """What the trainer's containers have run, at most 16: later pods ask the registry for that very digest."""
    single_node_claims: tuple[str, ...] = ()
    """Claims that one node alone can mount at a time, as found at admission: the pods of a stage that share one run on
    one node."""
    started_at: datetime | None = None
    """When the job was admitted."""
    active_seconds: float = 0
    """Seconds since then in which it was not suspended, up to `clockedAt`."""
    clocked_at: datetime | None = None
    """When `activeSeconds` was last added to; absent while suspended or ended."""
    finished_at: datetime | None = None
    """When it completed or failed."""
