"""What an engineer writes: the spec of an AlignmentJob.

Defaults stand on their fields with unit and reason; `crd.py` carries both into `kubectl explain`.
A field exists once something reads it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from alignment_api.base import Contract
from alignment_api.quantity import Quantity
from alignment_api.sources import ReadableSource, WritableSource

Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Model(Contract):
    """The model to align."""

    source: ReadableSource
    """A Hugging Face folder (config, tokenizer, safetensors): file:///path, pvc://claim/path or hf://org/name."""
    revision: str = "main"
    """Branch, tag or commit of an hf:// model; `prepare` pins a commit, so that attempts read the same weights."""


class Evaluation(Contract):
    """The rows held out of training. A prompt is never on both sides."""

    fraction: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the prompts held out, by a hash of the prompt. 0.02 where neither this nor `source` is given."""
    source: ReadableSource | None = None
    """A data set of its own instead; its prompts are removed from training."""
    every_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between evaluations while training. Default: with every checkpoint."""

    @model_validator(mode="after")
    def _one_origin(self) -> Evaluation:
        if self.fraction is not None and self.source is not None:
            raise ValueError("`fraction` and `source` exclude each other; keep one")
        return self


class Data(Contract):
    """The rows to learn from."""

    source: ReadableSource
    """A .jsonl or .parquet file, a folder of them, or an hf:// data set."""
    split: str = "train"
    """Split of an hf:// data set."""
    revision: str = "main"
    """Branch, tag or commit of an hf:// data set; pinned by `prepare`."""
    format: Literal["auto", "preferences"] = "auto"
    """`preferences`: prompt, chosen, rejected. `auto` looks at the rows and says in status what it found."""
    on_invalid: Literal["refuse", "drop"] = "refuse"
    """`refuse`: an invalid row stops the job, by its number. `drop`: such rows are listed in storage and counted."""
    evaluation: Evaluation = Evaluation()
    """The held-out rows."""


class Dpo(Contract):
    """Direct preference optimization (Rafailov et al. 2023)."""

    beta: Positive = 0.1
    """Strength of the pull to the reference: higher stays closer. 0.05-0.2 is usual; start at 0.1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a preference label is flipped (conservative DPO, Mitchell 2023). 0 trusts the labels."""


class Algorithm(Contract):
    """Exactly one algorithm."""

    dpo: Dpo | None = None
    """Direct preference optimization: from pairs, without a reward model."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Algorithm:
        chosen = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(chosen) != 1:
            raise ValueError(
                f"exactly one algorithm must be given, found {len(chosen)}; write for example `dpo: {{beta: 0.1}}`"
            )
        return self

    @property
    def name(self) -> str:
        """The key that is set: `dpo`."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)


class Training(Contract):
    """The optimizer's steps."""

    epochs: Annotated[int, Field(ge=1)] = 1
    """Passes over the training rows. Preference data is usually seen once; more overfits."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Ends training after so many optimizer steps, whatever `epochs` says."""
    batch_size: Annotated[int, Field(ge=1)] = 64
    """Sequences (pairs for pair losses) per optimizer step, over the whole job, whatever its GPUs and micro-batches."""
    micro_batch_tokens: Annotated[int, Field(ge=64)] = 8192
    """Tokens one rank computes at once (rows are packed without padding): memory against speed, never the gradient."""
    learning_rate: Positive = 5e-7
    """Peak learning rate of AdamW. 5e-7 suits full-parameter DPO from 7B up; small models take up to 1e-5."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of AdamW, on matrices only."""
    warmup_fraction: Fraction = 0.1
    """Share of the steps in which the learning rate climbs linearly to its peak; then it falls on a cosine to zero."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this L2 norm."""
    max_length: Annotated[int, Field(ge=16)] = 2048
    """Tokens of prompt and completion together; a longer row is invalid (see data.onInvalid), never cut silently."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """`bf16`: fp32 master weights under bf16 autocast. `fp32`: everything in fp32."""
    sharding: Literal["none", "zero2", "zero3"] | None = None
    """How state is spread over ranks. Default: `none` for one rank, `zero3` (DeepSpeed) for more."""
    gradient_checkpointing: bool = True
    """Recompute activations in backward: about a third more time for far less memory."""
    seed: int = 0
    """Seed of data order, split and dropout."""


class Role(Contract):
    """Sizes that every role has. Absent sizes come from the planner."""

    cpu: Quantity | None = None
    """CPU cores of one pod, for example 4 or 500m."""
    memory: Quantity | None = None
    """Memory of one pod, for example 16Gi."""
    pod_template: dict[str, Any] | None = None
    """A patch over the built pod, after the pool's own; named lists (containers, volumes, env) merge by name."""


class AcceleratedRole(Role):
    """A role that holds a model."""

    gpus: Annotated[int, Field(ge=1)] | None = None
    """GPUs of one pod, on a pool that has them; one process each."""
    processes: Annotated[int, Field(ge=1)] | None = None
    """CPU processes of one pod, on a pool without GPUs."""

    @model_validator(mode="after")
    def _gpus_or_processes(self) -> AcceleratedRole:
        if self.gpus is not None and self.processes is not None:
            raise ValueError("`gpus` and `processes` exclude each other; `processes` is for pools without GPUs")
        return self


class PrepareRole(Role):
    """Pins, checks and tokenizes; no GPU."""


class PolicyRole(AcceleratedRole):
    """The trainee."""

    replicas: Annotated[int, Field(ge=1)] = 1
    """Pods of the gang. More than one needs storage that several nodes can mount."""
    placement: Literal["onDemand", "spot"] = "onDemand"
    """`spot` is cheaper and is restarted from its last checkpoint when a node is reclaimed."""


class ReferenceRole(AcceleratedRole):
    """The frozen model of the KL term."""

    replicas: Annotated[int, Field(ge=0, le=256)] = 1
    """Servers; may change while the job runs. 0 pauses the work."""
    placement: Literal["spot", "onDemand", "withPolicy"] = "spot"
    """`withPolicy` computes the reference in the policy's own process before its first step; no server then."""


class EvaluatorRole(AcceleratedRole):
    """Scores the result on the held-out rows."""

    placement: Literal["spot", "onDemand"] = "spot"
    """Losing it costs a repeat of the evaluation, no more."""


class Roles(Contract):
    """Each key is optional."""

    prepare: PrepareRole = PrepareRole()
    """The CPU pod that checks data and model before anything costly starts."""
    policy: PolicyRole = PolicyRole()
    """The model being trained."""
    reference: ReferenceRole = ReferenceRole()
    """Servers of the frozen reference."""
    evaluator: EvaluatorRole = EvaluatorRole()
    """The evaluation after training."""


class Storage(Contract):
    """Where checkpoints and prepared data live while the job does."""

    source: WritableSource
    """pvc://claim/path, or file:///path on a laptop."""


class Checkpoint(Contract):
    """Verified commits of everything that decides the next step."""

    every_steps: Annotated[int, Field(ge=1)] = 100
    """Optimizer steps between checkpoints. What a lost node costs is at most this many steps."""
    keep: Annotated[int, Field(ge=1)] = 3
    """Checkpoints kept; a damaged newest falls back to the one before."""
    resume_from: WritableSource | None = None
    """Storage of another job to start from its last verified checkpoint; it is read, never written."""


class Output(Contract):
    """Where the aligned model goes. Never owned by the job."""

    destination: WritableSource
    """pvc://claim/path, or file:///path on a laptop. The model goes to its folder `model`, the report beside it."""


class Credential(Contract):
    """A Secret of the job's namespace."""

    secret_name: Annotated[str, Field(min_length=1, max_length=253)]
    """Its keys become environment variables (HF_TOKEN, ...) of the pods that read models and data."""


class Tracking(Contract):
    """Where curves go besides Prometheus."""

    tensorboard: bool = False
    """Write TensorBoard events to the folder `tensorboard` of the storage."""


class Budgets(Contract):
    """How much may go wrong before the job fails; counted for each role."""

    failures: Annotated[int, Field(ge=0)] = 3
    """Exits with an error that may pass. A user's mistake fails the job at once."""
    disruptions: Annotated[int, Field(ge=0)] = 100
    """Pods lost through the node or the control plane."""


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
    credentials: tuple[Credential, ...] = ()
    """Secrets whose keys become environment variables of the pods that read models and data."""
    tracking: Tracking = Tracking()
    """Experiment tracking."""
    budgets: Budgets = Budgets()
    """Tolerated failures and disruptions."""
    image: Annotated[str, Field(min_length=1)] | None = None
    """Trainer image. Default: that of the operator's release."""
    suspend: bool = False
    """True saves a checkpoint, removes every pod and waits; false goes on from there."""
    active_deadline_seconds: Annotated[int, Field(ge=1)] | None = None
    """Seconds from the start of the job after which it fails, suspended time not counted. Default: no limit."""
