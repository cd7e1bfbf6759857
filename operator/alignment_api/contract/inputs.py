"""What a job reads: a model, and rows to learn from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from alignment_api.contract.base import Contract
from alignment_api.contract.numbers import NotNegative, Steps
from alignment_api.contract.sources import DataSource, ReadableSource


class Model(Contract):
    """The model to align."""

    source: ReadableSource
    """A Hugging Face folder (config, tokenizer, safetensors): pvc://claim/path, hf://org/name, s3://bucket/prefix."""
    revision: str = "main"
    """Branch, tag or commit of an hf:// model; `prepare` pins a commit, so that attempts read the same weights. Of an
    s3:// model it pins what it found: a job goes on with those objects alone."""


HELD_OUT = 0.02
"""Share of the prompts that is held out where the manifest names neither a share nor a source."""


class Evaluation(Contract):
    """The rows held out of training. A prompt is never on both sides."""

    fraction: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the prompts held out, by a hash of the prompt. 0.02 where neither this nor `source` is given."""
    source: DataSource | None = None
    """A data set of its own instead; its prompts are removed from training."""
    every_steps: Steps | None = None
    """Optimizer steps between evaluations while training. Default: with every checkpoint."""


RowFormat = Literal["preferences", "demonstrations", "feedback", "prompts"]
ColumnName = Annotated[str, Field(min_length=1, max_length=256)]


class Columns(Contract):
    """What columns are called in the data, where that is not what they are called here."""

    prompt: ColumnName | None = None
    """What is asked: a string or a list of messages."""
    system: ColumnName | None = None
    """A system message before the prompt."""
    chosen: ColumnName | None = None
    """The better completion: a string, messages after the prompt, or the whole conversation."""
    rejected: ColumnName | None = None
    """The worse completion, in the form of the better one; or a list of such."""
    completions: ColumnName | None = None
    """Several completions, of which every two with different scores or ranks are a pair."""
    scores: ColumnName | None = None
    """A number for each completion, in a list beside them or in each; higher is better."""
    ranks: ColumnName | None = None
    """The same, where 1 is the best."""
    completion: ColumnName | None = None
    """The answer of a demonstration or of feedback: a string, or messages after the prompt."""
    label: ColumnName | None = None
    """Whether the completion is desirable: true or false."""
    messages: ColumnName | None = None
    """A whole conversation, as a demonstration."""
    text: ColumnName | None = None
    """A text without turns, as a demonstration."""
    weight: ColumnName | None = None
    """What the row's loss counts in its step, 0 or more; 1 where a row has none. 2 is the row given twice."""
    margin: ColumnName | None = None
    """By how much the chosen score is to be above the rejected one, 0 or more (`reward`)."""

    @property
    def named(self) -> tuple[str, ...]:
        """Our names of those that are called otherwise."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)


COLUMNS_OF: dict[RowFormat, tuple[str, ...]] = {
    "preferences": ("prompt", "system", "chosen", "rejected", "completions", "scores", "ranks", "weight", "margin"),
    "demonstrations": ("prompt", "system", "completion", "messages", "text", "weight"),
    "feedback": ("prompt", "system", "completion", "label", "weight"),
    "prompts": ("prompt", "system", "chosen", "rejected"),
}
"""Format -> the columns of Columns that its rows are read by; of prompts the two conversations that share one, too."""


class Data(Contract):
    """The rows to learn from."""

    source: DataSource
    """A file of rows (JSON, CSV, Parquet, Arrow: docs/data.md), a folder of them, or an hf:// data set. Files may lie
    in a bucket: s3://bucket/prefix. A pattern is all files of such names: pvc://data/train-*.parquet."""
    split: str = "train"
    """Split of an hf:// data set."""
    revision: str = "main"
    """Branch, tag or commit of an hf:// data set; pinned by `prepare`."""
    format: Literal["auto", RowFormat] = "auto"
    """`preferences`: prompt, chosen, rejected. `demonstrations`: messages, prompt and completion, or text. `feedback`:
    prompt, completion, label. `prompts`: prompt, and whatever reward functions read. Another than the algorithm learns
    from is refused. `auto` is the algorithm's, for rows that do not look like another's; written out it is read from
    such rows, too: the demonstrations in rows that are also preferences or feedback."""
    columns: Columns = Columns()
    """What columns are called in the data: `columns: {prompt: question}`. A name that the format does not read is
    refused."""
    margin_per_score: NotNegative = 0.0
    """For reward models: makes a pair's margin of the scores that rows have (`scores`, `score`, `score_chosen` and
    `score_rejected`): this, in units of the reward, for each point between the two. 0 makes none. With ratings of 1 to
    10 start at 0.1: a margin of 1 asks for odds of 2.7 to 1."""
    on_invalid: Literal["refuse", "drop"] = "refuse"
    """`refuse`: an invalid row stops the job, by its number. `drop`: such rows are listed in storage and counted."""
    on_too_long: Literal["refuse", "truncatePrompt", "drop"] = "refuse"
    """Rows of more tokens than training.maxLength, or than microBatchTokens where those are computed at once. `refuse`:
    they are invalid (see onInvalid). `truncatePrompt`: of the prompt the oldest turns are left out, but no system
    message, then the beginning of the user's last one; an answer is never cut, and a row that it alone makes too long
    is invalid. `drop`: such rows are listed in storage and counted."""
    evaluation: Evaluation = Evaluation()
    """The held-out rows."""
