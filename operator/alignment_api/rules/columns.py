"""Which numbers of its rows an algorithm that learns from pairs reads. Rows of the table."""

from __future__ import annotations

from alignment_api.contract.algorithms import OPTIONS
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.rules.rule import Rule

_UNREAD = tuple(
    name for name, options in OPTIONS.items() if options.rows == "preferences" and "margin" not in options.row_numbers
)
"""Algorithms whose rows may have a margin that they do not read; of others no column is read by that name (rows.py)."""


def column_rules() -> tuple[Rule, ...]:
    """One for each place where a margin is asked for."""
    return (
        Rule(
            AlignmentJobSpec,
            "a margin is read by reward models alone: take `reward: {}`, or leave the column out",
            lambda spec: _found(spec, spec.data.columns.margin) if spec.algorithm.name in _UNREAD else None,
            f"!has(self.data.columns) || !has(self.data.columns.margin) || !({_any_of(_UNREAD)})",
            {"spec": {"data": {"source": "pvc://data/a", "columns": {"margin": "m"}}}},
            ("data", "columns", "margin"),
        ),
        Rule(
            AlignmentJobSpec,
            "scores become margins for reward models alone: take `reward: {}`, or leave it out",
            lambda spec: _found(spec, spec.data.margin_per_score or None) if _has_no_margin(spec) else None,
            "!has(self.data.marginPerScore) || self.data.marginPerScore == 0.0 || has(self.algorithm.reward)",
            {"spec": {"data": {"source": "pvc://data/a", "marginPerScore": 0.1}}},
            ("data", "marginPerScore"),
        ),
    )


def _has_no_margin(spec: AlignmentJobSpec) -> bool:
    return spec.algorithm.given != () and "margin" not in spec.algorithm.options.row_numbers


def _found(spec: AlignmentJobSpec, given: object) -> str | None:
    return None if given is None else f"{given} in a job of {spec.algorithm.name}"


def _any_of(algorithms: tuple[str, ...]) -> str:
    return " || ".join(f"has(self.algorithm.{name})" for name in algorithms)
