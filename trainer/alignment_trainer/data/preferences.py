"""From the spec's data sources to tokenized training and held-out rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_api.spec import AlignmentJobSpec
from alignment_api.status import DataReport
from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.files import fingerprint
from alignment_trainer.data.rows import (
    InvalidRow,
    Problem,
    RawRow,
    check_format,
    complain,
    data_files,
    parse_row,
    read_rows,
)
from alignment_trainer.data.store import Int32, fingerprint_of, flatten
from alignment_trainer.data.tokenize import PairTokenizer, held_out_prompts
from alignment_trainer.errors import UserError
from alignment_trainer.metrics import Metrics
from alignment_trainer.sources import Resolved, resolve_data

log = logging.getLogger(__name__)

DEFAULT_FRACTION = 0.02
"""Of the prompts, held out where the spec names neither a share nor a source."""


@dataclass(frozen=True)
class DataSources:
    """Where the rows are. evaluation: None where a share of the training rows is held out."""

    train: Resolved
    evaluation: Resolved | None

    @property
    def identity(self) -> dict[str, str | None]:
        """What tells these rows from others: the content of the files."""
        return {"train": _content(self.train), "evaluation": _content(self.evaluation) if self.evaluation else None}


@dataclass(frozen=True)
class PreparedRows:
    """Tokenized rows by split, what was found, and the rows that were dropped."""

    arrays: dict[str, dict[str, Int32]]
    report: DataReport
    invalid: tuple[Problem, ...]


def find_data(spec: AlignmentJobSpec, sources: Mapping[str, str], pinned: str | None) -> DataSources:
    """Finds the data; of an hf:// data set the commit `pinned`, if any. Raises UserError where there is none."""
    data = spec.data
    train = resolve_data(data.source, sources, data.split, pinned or data.revision, "spec.data.source")
    if data.evaluation.source is None:
        return DataSources(train, None)
    field = "spec.data.evaluation.source"
    return DataSources(train, resolve_data(data.evaluation.source, sources, data.split, data.revision, field))


def prepare_rows(spec: AlignmentJobSpec, sources: DataSources, tokenizer: Any, metrics: Metrics) -> PreparedRows:
    """Reads, checks, tokenizes and splits. Raises UserError that names every invalid row, or what is empty."""
    encoder = PairTokenizer(tokenizer, spec.training.max_length)
    examples, invalid = _encode(spec.data.source, sources.train.path, encoder, metrics)
    if sources.evaluation is None:
        held_out = held_out_prompts(examples, spec.data.evaluation.fraction or DEFAULT_FRACTION, spec.training.seed)
        evaluation = [example for example in examples if example.prompt in held_out]
    else:
        source = spec.data.evaluation.source or ""
        evaluation, more = _encode(source, sources.evaluation.path, encoder, metrics)
        invalid = (*invalid, *more)
        held_out = frozenset(example.prompt for example in evaluation)
    if invalid and spec.data.on_invalid == "refuse":
        raise complain(invalid, len(examples) + len(invalid), spec.data.source)
    train = [example for example in examples if example.prompt not in held_out]
    _check_counts(spec, examples, train, evaluation)
    arrays = {"train": flatten(train), "evaluation": flatten(evaluation)}
    report = DataReport(
        format="preferences",
        rows=len(train),
        evaluation_rows=len(evaluation),
        invalid_rows=len(invalid),
        fingerprint=fingerprint_of(arrays),
        revision=sources.train.revision,
    )
    log.info("data prepared", extra=report.model_dump(by_alias=False))
    return PreparedRows(arrays, report, tuple(invalid))


def _encode(
    source: str, path: Path, encoder: PairTokenizer, metrics: Metrics
) -> tuple[list[PreferenceExample], Sequence[Problem]]:
    check_format(read_rows(path), source)
    examples: list[PreferenceExample] = []
    invalid: list[Problem] = []
    for row in read_rows(path):
        try:
            examples.append(_encode_row(row, encoder))
        except InvalidRow as error:
            invalid.append(Problem(row.number, row.place, str(error)))
        metrics.set("rows", row.number)
    if not examples and not invalid:
        raise UserError("NoRows", f"{source}: holds no rows; write at least two preferences with different prompts")
    return examples, invalid


def _encode_row(row: RawRow, encoder: PairTokenizer) -> PreferenceExample:
    return encoder.encode(parse_row(row))


def _check_counts(
    spec: AlignmentJobSpec,
    examples: Sequence[PreferenceExample],
    train: Sequence[PreferenceExample],
    evaluation: Sequence[PreferenceExample],
) -> None:
    if not evaluation:
        raise UserError("NoRows", f"{spec.data.evaluation.source or spec.data.source}: no valid row is held out")
    if not train:
        prompts = len({example.prompt for example in examples})
        why = f"all {len(examples)} valid rows ({prompts} different prompts) are held out"
        raise UserError(
            "NoRows", f"{spec.data.source}: no rows are left to train on: {why}; add rows with other prompts"
        )
    if len(train) < spec.training.batch_size:
        log.warning(
            "spec.training.batchSize is %d, but there are %d training rows: a step sees them all",
            spec.training.batch_size,
            len(train),
        )


def _content(resolved: Resolved) -> str:
    """The commit of a hub's data set, else a fingerprint of the files."""
    if resolved.revision is not None:
        return resolved.revision
    folder = resolved.path if resolved.path.is_dir() else resolved.path.parent
    return fingerprint(data_files(resolved.path), folder)
