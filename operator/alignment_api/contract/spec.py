"""What an engineer writes: the spec of an AlignmentJob.

Defaults stand on their fields with unit and reason; `crd/schema.py` carries both into `kubectl explain`.
A field exists once something reads it.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from alignment_api.contract.algorithms import Algorithm
from alignment_api.contract.base import Contract
from alignment_api.contract.inputs import Data, Model
from alignment_api.contract.numbers import Count, Fraction, LayersAgain, Positive, Steps, TokensAtOnce, Tolerated
from alignment_api.contract.role_spec import Roles
from alignment_api.contract.sources import MountedSource, WritableSource

Sharding = Literal["none", "fsdp2", "zero2", "zero3"]
Target = Annotated[str, Field(min_length=1, max_length=253)]


class Lora(Contract):
    """Low-rank adapters (Hu et al. 2021): beside the matrices of the layers small ones are trained, all else stays."""

    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Inner width of an adapter: with it grow memory, checkpoints and what can be learnt."""
    alpha: Positive | None = None
    """An adapter's product is multiplied by alpha / rank. Default: the rank, so by 1."""
    targets: Annotated[tuple[Target, ...], Field(min_length=1, max_length=64)] | None = None
    """Ends of the names of the linear layers that get one, for example q_proj or mlp.down_proj. Default: all of the
    decoder's layers. `prepare` refuses an end that the model does not have, with the nearest ones."""
    rs_lora: bool = False
    """Multiply by alpha / sqrt(rank) instead, under which large ranks go on learning (Kalajdzievski 2023)."""

    @property
    def scale(self) -> float:
        """Of an adapter's product."""
        return (self.alpha or self.rank) / (self.rank**0.5 if self.rs_lora else self.rank)


class Training(Contract):
    """The optimizer's steps."""

    epochs: Count = 1
    """Passes over the training rows or prompts. Preference data is usually seen once; more overfits."""
    max_steps: Steps | None = None
    """Ends training after so many steps, whatever `epochs` says. A step is one optimizer step; of ppo and grpo one
    rollout with all its updates."""
    batch_size: Count = 64
    """Sequences (pairs for pair losses) per optimizer step, over the whole job, whatever its GPUs and micro-batches. Of
    ppo and grpo completions; it divides those of a rollout."""
    micro_batch_tokens: TokensAtOnce = "auto"
    """Tokens one rank or server computes at once: rows are packed without padding, and larger groups are split. A pair
    or a completion with its prompt is not; one that is longer is too long (see data.onTooLong). Memory against speed,
    never the gradient. `auto`: as many as memory holds, at most 8192 or one longest row; status.microBatch says how
    many and why."""
    learning_rate: Positive | None = None
    """Peak learning rate of AdamW. Default: by algorithm, for whole models from 7B up: 5e-7 for dpo, ipo, kto and
    simpo; 1e-6 for ppo and grpo; 5e-6 for orpo; 1e-5 for reward; 2e-5 for sft. With `lora` ten times that. Small models
    take more, up to 1e-5 for dpo. status.learningRate says which it is and why."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW, on matrices only."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate climbs linearly to its peak; then it falls on a cosine to zero."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this L2 norm."""
    max_length: Annotated[int, Field(ge=16, le=100_000_000)] = 2048
    """Tokens of prompt and completion together; a longer row is refused, cut or dropped by data.onTooLong."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`bf16`: fp32 master weights under bf16 autocast. `fp32`: everything in fp32. `auto`: bf16 where the devices that
    train have it in hardware, else fp32, which is 5 to 10 times faster there; status.precision says which and why."""
    sharding: Sharding | None = None
    """How state is spread over ranks. Default: `none` for one rank, `fsdp2` (torch's fully_shard) for more; `zero2` and
    `zero3` are DeepSpeed's."""
    recompute_layers: LayersAgain = "auto"
    """Layers whose activations are computed again in the backward pass instead of kept, from the first on: a third more
    time for far less memory where it is all of them, the same gradient in any case. `auto`: the least with which 2048
    tokens fit at once; status.microBatch says how many."""
    lora: Lora | None = None
    """Train adapters instead of the model's own weights: an eighth of the memory of the state, checkpoints of
    megabytes. For algorithms that learn from pairs, with sharding `none` or `fsdp2`. They take 10 to 100 times the
    learning rate of whole models, and have 10 times its default. Default: the whole model is trained."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of data order, split, new heads, adapters and samples."""


class Storage(Contract):
    """Where checkpoints and prepared data live while the job does."""

    source: WritableSource
    """pvc://claim/path, s3://bucket/prefix, or file:///path on a laptop. A bucket is for what learns from pairs, on one
    pod of the policy, without tracking.tensorboard; a pod reads a copy of what lies there, on its node's disk
    (roles.*.ephemeralStorage)."""


class Checkpoint(Contract):
    """Verified checkpoints of everything that decides the next step."""

    every_steps: Steps = 100
    """Steps (see training.maxSteps) between checkpoints. What a lost node costs is at most this many steps."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    """Checkpoints kept; a damaged newest falls back to the one before."""
    resume_from: MountedSource | None = None
    """Storage of another job, of the same model, to start from the weights of its newest verified checkpoint; it is
    read, never written. The new job begins at its own step 0: its rows, optimizer and random numbers are its own. A job
    goes on from its own checkpoints by itself."""


class Output(Contract):
    """Where the aligned model goes. Never owned by the job."""

    destination: WritableSource
    """pvc://claim/path, s3://bucket/prefix, or file:///path on a laptop. The model goes to its folder `model`, the
    report beside it. In a bucket the model is whole as soon as its config.json is there."""


class Credential(Contract):
    """A Secret of the job's namespace."""

    secret_name: Annotated[str, Field(min_length=1, max_length=253)]
    """Its keys become environment variables (HF_TOKEN, AWS_ACCESS_KEY_ID, ...) of the job's pods. For s3:// these are
    the usual ones: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION; AWS_ENDPOINT_URL for a store beside AWS."""


class Tracking(Contract):
    """Where curves go besides Prometheus."""

    tensorboard: bool = False
    """Write TensorBoard events to the folder `tensorboard` of the storage."""


class Budgets(Contract):
    """How much may go wrong within a day before the job fails: for each server, and for the trainees as one.

    A checkpoint that has got further than any before, and the end of a stage, set the count back to nothing.
    """

    failures: Tolerated = 3
    """Exits with an error that may pass. A user's mistake fails the job at once. A server that fails more often ends
    the job only where no other of its role is ready."""
    disruptions: Tolerated = 100
    """Pods lost through the node or the control plane. Losing servers never ends the job: beyond the budget they are
    replaced with pauses."""


class AlignmentJobSpec(Contract):
    """One alignment job: ten lines for the common case."""

    model: Model
    """The model to align."""
    data: Data
    """The rows to learn from."""
    algorithm: Algorithm
    """Exactly one algorithm and its hyper-parameters."""
    training: Training = Training()
    """The optimizer's steps."""
    roles: Roles = Roles()
    """Sizes and places of the job's roles."""
    storage: Storage | None = None
    """Checkpoints and prepared data. Absent: a volume of the platform's storage class, owned by the job."""
    checkpoint: Checkpoint = Checkpoint()
    """How often to save, what to resume from."""
    output: Output | None = None
    """Where the model goes. Absent: the platform's destination, else a volume that outlives the job."""
    credentials: Annotated[tuple[Credential, ...], Field(max_length=64)] = ()
    """Secrets whose keys become environment variables of the job's pods."""
    tracking: Tracking = Tracking()
    """Experiment tracking."""
    budgets: Budgets = Budgets()
    """Tolerated failures and disruptions."""
    image: Annotated[str, Field(min_length=1)] | None = None
    """Trainer image. Default: that of the operator's release."""
    suspend: bool = False
    """True saves a checkpoint, removes every pod and waits; false goes on from there."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = None
    """Seconds from the start of the job after which it fails, suspended time not counted. Default: no limit."""
    ready_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] = 3600
    """Seconds in which a pod must get ready, from the moment it may be scheduled; then the job fails and says what it
    waited for (an image, a node, a quota, a probe). An hour holds a node's start, an image and a large model. Of
    servers one of a role is enough, and want of spot nodes is waited out. Not on a laptop."""
    stall_deadline_seconds: Annotated[int, Field(ge=1, le=315_360_000)] | None = None
    """Seconds without a step after which the trainees are restarted as after a failure. Default: ten times the usual
    step, at least 1800 (collectives have ended by then), and 10800 until a step has been made. A pod that was ready and
    does not answer any more is restarted likewise, after 1800 at most. Not on a laptop, which may sleep."""
