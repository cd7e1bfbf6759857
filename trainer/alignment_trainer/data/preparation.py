"""From the files of a job's data to tokenized training and held-out rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from alignment_api.contract.inputs import Data
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import DataReport
from alignment_trainer.data.examples import PreferenceExample, PromptExample
from alignment_trainer.data.finding import DataSources
from alignment_trainer.data.prepared import PREFERENCE_PARTS, PROMPT_PARTS, Int32, fingerprint_of, flatten
from alignment_trainer.data.rows import (
    InvalidRow,
    Problem,
    RawRow,
    check_format,
    check_prompts,
    complain,
    parse_prompt,
    parse_row,
    read_rows,
)
from alignment_trainer.data.tokenize import PairTokenizer, PromptTokenizer, Room, attempt, held_out_prompts
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.metrics import Metrics

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 512
"""Read, rendered and tokenized together: enough for every core, a few MB."""
DEFAULT_FRACTION = 0.02
"""Of the prompts, held out where the spec names neither a share nor a source."""
Example = TypeVar("Example", bound=PreferenceExample | PromptExample)


@dataclass(frozen=True)
class RowFormat(Generic[Example]):
    """How rows are read. name: as status says it. parts: the token sequences of an example.

    check: looks at the first rows of a source; raises UserError. encode: each row's example, or what is wrong with it.
    fields: the rows as the user wrote them, as JSON, where they are kept.
    """

    name: str
    parts: tuple[str, ...]
    check: Callable[[Iterable[RawRow], str], str]
    encode: Callable[[Sequence[RawRow]], list[Example | InvalidRow]]
    fields: Callable[[Sequence[Example]], list[str]] = lambda examples: []


@dataclass(frozen=True)
class Request:
    """Which rows. field: where the manifest says it, `spec.data`. per_step: training rows that a step sees.

    least_held_out: held-out rows that are needed.
    """

    data: Data
    field: str
    seed: int
    per_step: int
    least_held_out: int = 1


@dataclass(frozen=True)
class PreparedRows:
    """Tokenized rows by split, of prompts also the rows as they were written, what was found, and what was dropped."""

    arrays: dict[str, dict[str, Int32]]
    fields: dict[str, list[str]]
    report: DataReport
    invalid: tuple[Problem, ...]


def preferences(spec: AlignmentJobSpec, tokenizer: Any) -> RowFormat[PreferenceExample]:
    """Prompt, chosen, rejected: what the offline algorithms learn from."""
    encoder = PairTokenizer(tokenizer, spec.training.max_length)

    def encode(rows: Sequence[RawRow]) -> list[PreferenceExample | InvalidRow]:
        return encoder.encode_each([attempt(parse_row, row) for row in rows])

    return RowFormat("preferences", PREFERENCE_PARTS, check_format, encode)


def prompts(spec: AlignmentJobSpec, tokenizer: Any) -> RowFormat[PromptExample]:
    """Prompts alone, with whatever reward functions read: what PPO and GRPO sample for."""
    online = spec.algorithm.online
    if online is None:
        raise ValueError(f"algorithm {spec.algorithm.name} samples nothing and has no prompts")
    field = f"spec.algorithm.{spec.algorithm.name}.maxNewTokens"
    encoder = PromptTokenizer(tokenizer, Room(spec.training.max_length, online.max_new_tokens, field))

    def encode(rows: Sequence[RawRow]) -> list[PromptExample | InvalidRow]:
        return encoder.encode_each([attempt(parse_prompt, row) for row in rows])

    return RowFormat("prompts", PROMPT_PARTS, check_prompts, encode, _as_json)


def _as_json(examples: Sequence[PromptExample]) -> list[str]:
    return [json.dumps(dict(example.fields), default=str) for example in examples]


def prepare_rows(request: Request, form: RowFormat[Example], sources: DataSources, metrics: Metrics) -> PreparedRows:
    """Reads, checks, tokenizes and splits. Raises UserError that names every invalid row, or what is empty."""
    data = request.data
    examples, invalid = _encode(data.source, sources.train.path, form, metrics)
    if sources.evaluation is None:
        held_out = _held_out(request, examples)
        evaluation = [example for example in examples if example.prompt in held_out]
    else:
        evaluation, more = _encode(data.evaluation.source or "", sources.evaluation.path, form, metrics)
        invalid = [*invalid, *more]
        held_out = frozenset(example.prompt for example in evaluation)
    if invalid and data.on_invalid == "refuse":
        raise complain(invalid, len(examples) + len(invalid), data.source, request.field)
    train = [example for example in examples if example.prompt not in held_out]
    _check_counts(request, examples, train, evaluation)
    arrays = {"train": flatten(train, form.parts), "evaluation": flatten(evaluation, form.parts)}
    fields = {"train": form.fields(train), "evaluation": form.fields(evaluation)}
    report = DataReport(
        format=form.name,
        rows=len(train),
        evaluation_rows=len(evaluation),
        invalid_rows=len(invalid),
        fingerprint=fingerprint_of(arrays, fields),
        revision=sources.train.revision,
    )
    log.info("data prepared", extra=report.model_dump(by_alias=False))
    return PreparedRows(arrays, fields, report, tuple(invalid))


def _held_out(request: Request, examples: Sequence[Example]) -> frozenset[tuple[int, ...]]:
    """A share that the user chose stays as it is; the default grows until it is enough."""
    chosen = request.data.evaluation.fraction
    if chosen is not None:
        return held_out_prompts(examples, chosen, request.seed)
    return held_out_prompts(examples, DEFAULT_FRACTION, request.seed, request.least_held_out)


def _encode(source: str, path: Path, form: RowFormat[Example], metrics: Metrics) -> tuple[list[Example], list[Problem]]:
    form.check(read_rows(path), source)
    examples: list[Example] = []
    invalid: list[Problem] = []
    rows = read_rows(path)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        for row, found in zip(some, form.encode(some), strict=True):
            if isinstance(found, InvalidRow):
                invalid.append(Problem(row.number, row.place, str(found)))
            else:
                examples.append(found)
        metrics.set("rows", some[-1].number)
    if not examples and not invalid:
        raise UserError("NoRows", f"{source}: holds no rows; write at least two {form.name} with different prompts")
    return examples, invalid


def _check_counts(
    request: Request, examples: Sequence[Example], train: Sequence[Example], evaluation: Sequence[Example]
) -> None:
    data, least = request.data, request.least_held_out
    distinct = len({example.prompt for example in examples})
    found = f"{len(examples)} valid rows ({distinct} different prompts)"
    if not evaluation:
        raise UserError("NoRows", f"{data.evaluation.source or data.source}: no valid row is held out")
    if len(evaluation) < least:
        raise UserError(
            "TooFewHeldOut",
            f"{request.field}.evaluation: {len(evaluation)} pairs are held out of {found}, and a reward model is "
            f"judged on {least} at least; raise `fraction`, name a `source` of more pairs, or give more pairs in all",
        )
    if not train:
        raise UserError(
            "NoRows",
            f"{data.source}: no rows are left to train on: all {found} are held out; add rows with other prompts",
        )
    if len(train) < request.per_step:
        log.warning("a step takes %d rows, but there are %d training rows", request.per_step, len(train))
