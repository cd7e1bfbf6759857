"""What a job reads: a model, and rows to learn from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from alignment_api.contract.base import Contract
from alignment_api.contract.numbers import Steps
from alignment_api.contract.sources import ReadableSource


class Model(Contract):
    """The model to align."""

    source: ReadableSource
    """A Hugging Face folder (config, tokenizer, safetensors): pvc://claim/path, hf://org/name, s3://bucket/prefix."""
    revision: str = "main"
    """Branch, tag or commit of an hf:// model; `prepare` pins a commit, so that attempts read the same weights. Of an
    s3:// model it pins what it found: a job goes on with those objects alone."""


class Evaluation(Contract):
    """The rows held out of training. A prompt is never on both sides."""

    fraction: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of the prompts held out, by a hash of the prompt. 0.02 where neither this nor `source` is given."""
    source: ReadableSource | None = None
    """A data set of its own instead; its prompts are removed from training."""
    every_steps: Steps | None = None
    """Optimizer steps between evaluations while training. Default: with every checkpoint."""


class Data(Contract):
    """The rows to learn from."""

    source: ReadableSource
    """A .jsonl or .parquet file, a folder of them, or an hf:// data set. Files may lie in a bucket: s3://bucket/prefix."""
    split: str = "train"
    """Split of an hf:// data set."""
    revision: str = "main"
    """Branch, tag or commit of an hf:// data set; pinned by `prepare`."""
    format: Literal["auto", "preferences", "prompts"] = "auto"
    """`preferences`: prompt, chosen, rejected. `prompts`: prompt, and whatever reward functions read. `auto` takes
    what the algorithm needs and says in status what it found."""
    on_invalid: Literal["refuse", "drop"] = "refuse"
    """`refuse`: an invalid row stops the job, by its number. `drop`: such rows are listed in storage and counted."""
    evaluation: Evaluation = Evaluation()
    """The held-out rows."""
