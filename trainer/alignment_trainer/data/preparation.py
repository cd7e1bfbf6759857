"""From the files of a job's data to tokenized training and held-out rows."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from alignment_api.contract.inputs import HELD_OUT, Columns, Data
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import DataReport
from alignment_api.derived.micro_batch import tokens_of
from alignment_trainer.data.demonstrations import DemonstrationTokenizer
from alignment_trainer.data.examples import EXAMPLE_PARTS, Example, PromptExample
from alignment_trainer.data.feedback import FeedbackTokenizer, check_labels
from alignment_trainer.data.finding import DataSources
from alignment_trainer.data.layouts.numbers import NONE, Numbers
from alignment_trainer.data.layouts.parsers import PARSERS, RowParser
from alignment_trainer.data.layouts.readings import Readings
from alignment_trainer.data.prepared import PROMPT_PARTS, fingerprint_of
from alignment_trainer.data.rows import (
    DemonstrationRow,
    FeedbackRow,
    InvalidRow,
    PreferenceRow,
    Problem,
    PromptRow,
    RawRow,
    RowTooLong,
    complain,
    read_rows,
)
from alignment_trainer.data.splits import PromptKeys, held_out
from alignment_trainer.data.spool import Selection, Spool
from alignment_trainer.data.tokenize import (
    PairTokenizer,
    PromptTokenizer,
    Room,
    RowTokenizer,
    attempt,
)
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.metrics import Metrics

log = logging.getLogger(__name__)

ROWS_AT_ONCE = 512
"""Read, rendered and tokenized together: enough for every core, a few MB."""
Row = TypeVar("Row", bound=PreferenceRow | DemonstrationRow | FeedbackRow | PromptRow)
Found = TypeVar("Found", bound=Example | PromptExample)


@dataclass(frozen=True)
class RowFormat(Generic[Row, Found]):
    """How rows are read. name: as status says it, a key of PARSERS. parts: the token sequences of an example.

    encoder: makes each one's example, or says what is wrong with it. numbers: that are read of each row. fields: the
    rows as the user wrote them, as JSON, where they are kept. check_all: looks at the training rows as a whole; raises
    UserError with their source's name.
    """

    name: str
    parts: tuple[str, ...]
    encoder: RowTokenizer[Any, Found]
    numbers: Numbers = NONE
    fields: Callable[[Sequence[Found]], list[str]] = lambda examples: []
    check_all: Callable[[Selection, str], None] = lambda rows, source: None

    @property
    def parser(self) -> RowParser:
        """How a row is told from others, and read."""
        return PARSERS[self.name]


@dataclass(frozen=True)
class Request:
    """Which rows. field: where the manifest says it, `spec.data`. per_step: training rows that a step sees.

    least_held_out: held-out rows that are needed.
    """

    data: Data
    field: str
    per_step: int
    least_held_out: int = 1


@dataclass(frozen=True)
class PreparedRows:
    """Tokenized rows by split, and what was found. dropped: the invalid ones, as lines."""

    splits: dict[str, Selection]
    report: DataReport
    dropped: Iterator[bytes]


def preferences(spec: AlignmentJobSpec, tokenizer: Any) -> RowFormat[PreferenceRow, Example]:
    """Prompt, chosen, rejected: what the offline algorithms learn from."""
    encoder = PairTokenizer(tokenizer, *_limits(spec))
    return RowFormat(
        "preferences", EXAMPLE_PARTS, encoder, Numbers.of(spec.algorithm.options, spec.data), check_all=check_weights
    )


def demonstrations(spec: AlignmentJobSpec, tokenizer: Any) -> RowFormat[DemonstrationRow, Example]:
    """Conversations, answers and texts: what supervised fine-tuning learns from."""
    encoder = DemonstrationTokenizer(tokenizer, *_limits(spec))
    return RowFormat("demonstrations", EXAMPLE_PARTS, encoder, _numbers(spec), check_all=check_weights)


def feedback(spec: AlignmentJobSpec, tokenizer: Any) -> RowFormat[FeedbackRow, Example]:
    """Prompt, completion, label: what KTO learns from."""
    encoder = FeedbackTokenizer(tokenizer, *_limits(spec))
    return RowFormat(
        "feedback", EXAMPLE_PARTS, encoder, Numbers.of(spec.algorithm.options, spec.data), check_all=_check_feedback
    )


def prompts(spec: AlignmentJobSpec, tokenizer: Any) -> RowFormat[PromptRow, PromptExample]:
    """Prompts alone, with whatever reward functions read: what PPO and GRPO sample for."""
    online = spec.algorithm.online
    if online is None:
        raise ValueError(f"algorithm {spec.algorithm.name} samples nothing and has no prompts")
    field = f"spec.algorithm.{spec.algorithm.name}.maxNewTokens"
    max_length, at_once, cuts_prompts = _limits(spec)
    encoder = PromptTokenizer(tokenizer, Room(max_length, at_once, online.max_new_tokens, field), cuts_prompts)
    return RowFormat("prompts", PROMPT_PARTS, encoder, fields=_as_json)


def _numbers(spec: AlignmentJobSpec) -> Numbers:
    return Numbers.of(spec.algorithm.options, spec.data)


def _limits(spec: AlignmentJobSpec) -> tuple[int, int, bool]:
    """Tokens of a row and of what is computed at once, and whether a prompt is cut that makes it longer."""
    return spec.training.max_length, tokens_of(spec.training), spec.data.on_too_long == "truncatePrompt"


FORMATS: dict[str, Callable[[AlignmentJobSpec, Any], RowFormat[Any, Any]]] = {
    "preferences": preferences,
    "demonstrations": demonstrations,
    "feedback": feedback,
    "prompts": prompts,
}
"""By what the algorithm's options say of its rows."""


def check_weights(rows: Selection, source: str) -> None:
    """Raises UserError where no row weighs anything: there is nothing to learn."""
    column = rows.columns().get("weight_tokens")
    if column is None or column.length < len(rows):
        return  # a row without a number weighs 1
    if not np.frombuffer(b"".join(column.read()), "<f4").any():
        found = f"all {len(rows)} training rows have weight 0"
        raise UserError("NoWeight", f"{source}: {found}; give those to learn from a weight above 0")


def _check_feedback(rows: Selection, source: str) -> None:
    check_weights(rows, source)
    check_labels(rows, source)


def _as_json(examples: Sequence[PromptExample]) -> list[str]:
    return [json.dumps(dict(example.fields), default=str) for example in examples]


def prepare_rows(
    request: Request, form: RowFormat[Row, Found], sources: DataSources, spool: Spool, metrics: Metrics
) -> PreparedRows:
    """Reads, checks, tokenizes and splits. Raises UserError that names invalid rows, or what is empty.

    spool: empty, of the format's parts; it has the rows for as long as it is open.
    """
    data = request.data
    readings = [_tokenize(request, data.source, sources.train.path, form, spool, metrics)]
    given = len(spool)
    if sources.evaluation is not None:
        held_out = data.evaluation.source or ""
        readings.append(_tokenize(request, held_out, sources.evaluation.path, form, spool, metrics))
    splits = _split(request, spool, given)
    invalid = len(spool.problems)
    if invalid and data.on_invalid == "refuse":
        raise complain(spool.problems.first, invalid, len(spool) + invalid, data.source, request.field)
    train, evaluation = splits["train"], splits["evaluation"]
    _check_counts(request, spool.prompts()[:given], len(train), len(evaluation))
    form.check_all(train, data.source)
    report = DataReport(
        format=form.name,
        rows=len(train),
        evaluation_rows=len(evaluation),
        invalid_rows=invalid,
        too_long_rows=len(spool.too_long),
        truncated_rows=form.encoder.cut,
        fingerprint=fingerprint_of(splits),
        revision=sources.train.revision,
        readings=[each for found in readings for each in found.reports()],
    )
    log.info("data prepared", extra=report.model_dump(by_alias=False))
    return PreparedRows(splits, report, chain(spool.problems.lines(), spool.too_long.lines()))


def _split(request: Request, spool: Spool, given: int) -> dict[str, Selection]:
    """A share that the user chose stays as it is; the default grows until it is enough.

    given: rows of the first source; those of a second one are held out, with the prompts that both have.
    """
    prompts, chosen = spool.prompts(), request.data.evaluation.fraction
    if request.data.evaluation.source is not None:
        is_out = np.isin(prompts, prompts[given:])
        evaluation = np.arange(given, len(prompts))
    else:
        least = request.least_held_out if chosen is None else 1
        is_out = held_out(prompts, HELD_OUT if chosen is None else chosen, least)
        evaluation = np.flatnonzero(is_out)
    return {"train": Selection(spool, np.flatnonzero(~is_out)), "evaluation": Selection(spool, evaluation)}


def _tokenize(
    request: Request, source: str, path: Path, form: RowFormat[Row, Found], spool: Spool, metrics: Metrics
) -> Readings:
    """Fills the spool from one source. Returns how its rows were read."""
    form.parser.check_source(path, source, request.data, request.field, form.numbers)
    found, readings = _seen(spool), Readings(source)
    parsed = _parsed(request.data.columns, read_rows(path), form, readings)
    while some := list(islice(parsed, ROWS_AT_ONCE)):
        encoded = form.encoder.encode_each([row for _, row in some])
        examples = [one for one in encoded if not isinstance(one, InvalidRow)]
        spool.add(examples, form.fields(examples))
        invalid, too_long = _wrong(((raw, one) for (raw, _), one in zip(some, encoded, strict=True)), request.data)
        spool.problems.add(invalid)
        spool.too_long.add(too_long)
        metrics.set("rows", some[-1][0].number)
    if found == _seen(spool):
        raise UserError("NoRows", f"{source}: holds no rows; write at least two {form.name} with different prompts")
    return readings


def _seen(spool: Spool) -> int:
    return len(spool) + len(spool.problems) + len(spool.too_long)


def _wrong(found: Iterable[tuple[RawRow, object]], data: Data) -> tuple[list[Problem], list[Problem]]:
    """What is invalid, and what is dropped for its length alone."""
    invalid, too_long = list[Problem](), list[Problem]()
    for raw, one in found:
        if isinstance(one, InvalidRow):
            drops = isinstance(one, RowTooLong) and data.on_too_long == "drop"
            (too_long if drops else invalid).append(Problem(raw.number, raw.place, str(one)))
    return invalid, too_long


def _parsed(
    columns: Columns, rows: Iterable[RawRow], form: RowFormat[Row, Found], readings: Readings
) -> Iterator[tuple[RawRow, Row | InvalidRow]]:
    """What each row states, several of a row that states several, or what is wrong with it."""
    for raw in rows:
        found = attempt(form.parser.parse, raw, columns, form.numbers)
        if isinstance(found, InvalidRow):
            yield raw, found
            continue
        readings.add(found[0].reading)
        yield from ((raw, row) for row in found)


def _check_counts(request: Request, prompts: PromptKeys, train: int, evaluation: int) -> None:
    """prompts: of the rows of the first source. train, evaluation: rows."""
    data, least = request.data, request.least_held_out
    found = f"{len(prompts)} valid rows ({len(np.unique(prompts))} different prompts)"
    if not evaluation:
        raise UserError("NoRows", f"{data.evaluation.source or data.source}: no valid row is held out")
    if evaluation < least:
        raise UserError(
            "TooFewHeldOut",
            f"{request.field}.evaluation: {evaluation} pairs are held out of {found}, and a reward model is "
            f"judged on {least} at least; raise `fraction`, name a `source` of more pairs, or give more pairs in all",
        )
    if not train:
        raise UserError(
            "NoRows",
            f"{data.source}: no rows are left to train on: all {found} are held out; add rows with other prompts",
        )
    if train < request.per_step:
        log.warning("a step takes %d rows, but there are %d training rows", request.per_step, train)
