"""What a completion of PPO and GRPO is worth: models and functions, summed by weight."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from alignment_api.contract.base import Contract
from alignment_api.contract.inputs import Data, Model
from alignment_api.contract.numbers import Count, Fraction, NotNegative, Positive
from alignment_api.contract.quantity import ListedQuantity
from alignment_api.contract.sources import MountedSource


class NumericAnswer(Contract):
    """1 where the completion's final number or expression equals the row's answer (math-verify), else 0.

    An answer that is an integer must be worked out: `7 + 7` is the question again, not 14."""

    answer_field: Annotated[str, Field(min_length=1)] = "answer"
    """Field of the row that holds the answer."""


class Regex(Contract):
    """1 where the pattern is found in the completion, else 0."""

    pattern: Annotated[str, Field(min_length=1)]
    """Python regular expression, searched for anywhere; anchor it with \\A and \\Z for the whole completion."""


class Length(Contract):
    """0 up to `maxTokens`, then falling in a straight line to -1 (the soft overlong punishment of DAPO, eq. 13)."""

    max_tokens: Count
    """Tokens that cost nothing."""
    tolerance_tokens: Count = 32
    """Tokens beyond `maxTokens` at which the penalty reaches -1."""


class JsonSchema(Contract):
    """1 where the completion is JSON that the schema allows, else 0."""

    definition: dict[str, Any]
    """The JSON Schema (2020-12)."""


class PythonFunction(Contract):
    """A function of your own: `score(completion: str, row: dict) -> float`, called by these names.

    It is called for one completion at a time. `row` is the prompt's row as written in the data. It is given neither the
    job's credentials nor any other environment variable, but runs as the trainer's user and can read what that can."""

    entrypoint: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """module:function, as an import finds it."""
    path: MountedSource | None = None
    """A folder to import it from: pvc://claim/path or file:///path. Default: the image's own packages."""
    first_call_timeout_seconds: Positive = 120.0
    """Seconds for its first call in a process, and for the import of its module: it may load a model there. Default
    120: some GB from a volume. `prepare` refuses a function that takes longer."""
    memory: ListedQuantity = "2Gi"
    """Memory that it may take, beside 1 GiB for all functions together, which share a process; each process that it
    starts may take as much. On a completion for which it takes more it scores 0, as after `timeoutSeconds`. Default
    2Gi: torch takes one, a judge of 250 million parameters in fp32 the other."""
    network: bool = False
    """Whether it needs the network: a judge behind HTTP. Without it the process has none where the kernel lets it leave
    without privileges: on most Linux machines, but in no pod with seccomp RuntimeDefault, where the log says so.
    Default false: data and completions stay here. True for one function is true for all of the job."""
    on_error: Literal["fail", "skip"] = "fail"
    """For a completion on which it raises or returns no finite number. `fail` ends the job and names completion and
    row. `skip` leaves the completion out, also one on which it takes too long or ends its process: it gets no reward,
    teaches nothing and is counted. Default fail: an error is a mistake until its author says otherwise."""
    max_skipped_fraction: Fraction = 0.05
    """Share of the newest 200 completions that may be skipped; more end the job. Default 0.05: the odd completion,
    not a kind of completions, which the model would learn to make or to avoid unseen."""


class RewardFunction(Contract):
    """Exactly one function. It runs in a process of its own, under a time limit."""

    numeric_answer: NumericAnswer | None = None
    """Is the final answer right?"""
    regex: Regex | None = None
    """Does it have the form?"""
    length: Length | None = None
    """Is it short enough?"""
    json_schema: JsonSchema | None = None
    """Is it well-formed JSON of this schema?"""
    python: PythonFunction | None = None
    """A function of your own."""
    timeout_seconds: Positive = 5.0
    """For one completion; a function that takes longer scores 0 there, and is counted. One that is lost on more than
    half of its newest 16 completions ends the job."""

    @classmethod
    def kinds(cls) -> dict[str, str]:
        """The functions to choose from, each with its key in manifests."""
        return {name: str(field.alias) for name, field in cls.model_fields.items() if name != "timeout_seconds"}

    @property
    def given(self) -> tuple[str, ...]:
        """The keys that are set; one, or a rule is broken."""
        return tuple(name for name in self.kinds() if getattr(self, name) is not None)

    @property
    def name(self) -> str:
        """The key that is set: `numeric_answer`, `regex`, ..."""
        return self.given[0]


class RewardTraining(Contract):
    """A reward model that this job trains from preferences before anything else, in stage `reward`."""

    preferences: Data
    """Pairs to learn from. At least 200 are held out, and it must do better than chance on them, or the job stops."""
    model: Model | None = None
    """What to start from. Default: spec.model."""
    learning_rate: Positive = 1e-5
    """Peak learning rate of AdamW."""
    epochs: Count = 1
    """Passes over the pairs; reward models overfit from the second on."""
    batch_size: Count = 64
    """Pairs per optimizer step, over the whole job."""


class Reward(Contract):
    """One part of the reward: exactly one of `train`, `model`, `function`."""

    name: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9_]*[a-z0-9])?$", max_length=40)] | None = None
    """Label of its metric. Default: what it is, for example `trained` or `regex`."""
    weight: NotNegative = 1.0
    """Factor in the sum. 0 measures without training on it: a judge that shows whether the others are hacked."""
    train: RewardTraining | None = None
    """A reward model that this job makes first."""
    model: Model | None = None
    """A reward model that exists: a Hugging Face sequence classifier with one label and the policy's tokenizer."""
    function: RewardFunction | None = None
    """A function of the completion's text."""

    @property
    def given(self) -> tuple[str, ...]:
        """The keys that are set; one, or a rule is broken."""
        return tuple(name for name in ("train", "model", "function") if getattr(self, name) is not None)

    @property
    def component(self) -> str:
        """Its name in metrics."""
        if self.name is not None:
            return self.name
        if self.function is not None:
            return self.function.name
        return "trained" if self.train is not None else "model"


Rewards = Annotated[tuple[Reward, ...], Field(min_length=1, max_length=16)]
