"""What may be said of a job's rows: format, columns and margins, as far as its algorithm reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from alignment_api.contract.algorithms import OPTIONS, Online
from alignment_api.contract.inputs import COLUMNS_OF, Columns, Data, RowFormat
from alignment_api.contract.rewards import RewardTraining
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.rules.rule import Rule

_SOURCE = "pvc://data/rows.jsonl"
_FUNCTION: dict[str, Any] = {"function": {"numericAnswer": {}}}
_WITHOUT_MARGIN = tuple(
    name for name, options in OPTIONS.items() if options.rows == "preferences" and "margin" not in options.row_numbers
)
"""Algorithms whose rows may have a margin that they do not read; others' rows have no column of that name."""


def row_rules() -> Iterator[Rule]:
    """Two for margins, two for each format, two for the preferences of a reward model, one for all columns."""
    yield _column_of_margins()
    yield _margins_of_scores()
    for form in COLUMNS_OF:
        learners = tuple(name for name, options in OPTIONS.items() if options.rows == form)
        yield _other_format(form, learners)
        yield _other_columns(form, learners)
    yield Rule(
        RewardTraining,
        "a reward model learns from preferences: write that, or leave format out",
        lambda training: _found_format(training.preferences, "preferences"),
        _format_is("self.preferences", "preferences"),
        _with_reward({"format": "prompts"}),
        ("preferences", "format"),
    )
    yield Rule(
        RewardTraining,
        _columns_message("preferences"),
        lambda training: _found_columns(training.preferences, "preferences"),
        _has_none_of("self.preferences", _unread("preferences")),
        _with_reward({"columns": {"label": "good"}}),
        ("preferences", "columns"),
    )
    yield _one_column_for_two()


def _other_format(form: RowFormat, learners: tuple[str, ...]) -> Rule:
    others = next(other for other in COLUMNS_OF if other != form)
    return Rule(
        AlignmentJobSpec,
        f"{_listed(learners)} {_learn(learners)} from {form}: write that, leave format out, or take an algorithm that "
        "learns from the other",
        lambda spec: _found_format(spec.data, form) if spec.algorithm.name in learners else None,
        f"{_is_none_of(learners)} || {_format_is('self.data', form)}",
        _job(learners[0], {"format": others}),
        ("data", "format"),
    )


def _other_columns(form: RowFormat, learners: tuple[str, ...]) -> Rule:
    return Rule(
        AlignmentJobSpec,
        _columns_message(form),
        lambda spec: _found_columns(spec.data, form) if spec.algorithm.name in learners else None,
        f"{_is_none_of(learners)} || {_has_none_of('self.data', _unread(form))}",
        _job(learners[0], {"columns": {_unread(form)[0]: "elsewhere"}}),
        ("data", "columns"),
    )


def _column_of_margins() -> Rule:
    return Rule(
        AlignmentJobSpec,
        "a margin is read by reward models alone: take `reward: {}`, or leave the column out",
        lambda spec: _asked(spec, spec.data.columns.margin) if spec.algorithm.name in _WITHOUT_MARGIN else None,
        f"{_is_none_of(_WITHOUT_MARGIN)} || {_has_none_of('self.data', ('margin',))}",
        _job("dpo", {"columns": {"margin": "m"}}),
        ("data", "columns", "margin"),
    )


def _margins_of_scores() -> Rule:
    return Rule(
        AlignmentJobSpec,
        "scores become margins for reward models alone: take `reward: {}`, or leave it out",
        lambda spec: (
            None if "margin" in spec.algorithm.options.row_numbers else _asked(spec, spec.data.margin_per_score or None)
        ),
        "!has(self.data.marginPerScore) || self.data.marginPerScore == 0.0 || has(self.algorithm.reward)",
        _job("dpo", {"marginPerScore": 0.1}),
        ("data", "marginPerScore"),
    )


def _asked(spec: AlignmentJobSpec, given: object) -> str | None:
    return None if given is None else f"{given} in a job of {spec.algorithm.name}"


def _one_column_for_two() -> Rule:
    named = ", ".join(f"has(self.{name}) ? [self.{name}] : []" for name in Columns.model_fields)
    return Rule(
        Columns,
        "one column cannot be two: name another, or leave one of them out",
        _shared_column,
        f"[{named}].all(one, one.size() == 0 || [{named}].filter(other, other == one).size() == 1)",
        _job("dpo", {"columns": {"chosen": "answer", "rejected": "answer"}}),
    )


def _shared_column(columns: Columns) -> str | None:
    theirs = [getattr(columns, name) for name in columns.named]
    shared = next((column for column in theirs if theirs.count(column) > 1), None)
    ours = [name for name in columns.named if getattr(columns, name) == shared]
    return f"`{shared}` for {' and '.join(ours)}" if shared is not None else None


def _found_format(data: Data, form: RowFormat) -> str | None:
    return None if data.format in ("auto", form) else f"`{data.format}`"


def _found_columns(data: Data, form: RowFormat) -> str | None:
    unread = [f"`{name}`" for name in data.columns.named if name not in COLUMNS_OF[form]]
    return ", ".join(unread) or None


def _columns_message(form: RowFormat) -> str:
    return f"rows of {form} are read by the columns {', '.join(COLUMNS_OF[form])}: name these alone"


def _unread(form: RowFormat) -> tuple[str, ...]:
    return tuple(name for name in Columns.model_fields if name not in COLUMNS_OF[form])


def _listed(names: tuple[str, ...]) -> str:
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last


def _learn(names: tuple[str, ...]) -> str:
    return "learn" if len(names) > 1 else "learns"


def _is_none_of(algorithms: tuple[str, ...]) -> str:
    return " && ".join(f"!has(self.algorithm.{name})" for name in algorithms)


def _format_is(data: str, form: RowFormat) -> str:
    return f"!has({data}.format) || {data}.format in ['auto', '{form}']"


def _has_none_of(data: str, columns: tuple[str, ...]) -> str:
    return f"!has({data}.columns) || ({' && '.join(f'!has({data}.columns.{name})' for name in columns)})"


def _job(algorithm: str, data: dict[str, Any]) -> dict[str, Any]:
    options = {"rewards": [_FUNCTION]} if issubclass(OPTIONS[algorithm], Online) else {}
    return {"spec": {"algorithm": {algorithm: options}, "data": {"source": _SOURCE} | data}}


def _with_reward(preferences: dict[str, Any]) -> dict[str, Any]:
    trained = {"train": {"preferences": {"source": _SOURCE} | preferences}}
    return {"spec": {"algorithm": {"ppo": {"rewards": [trained]}}}}
