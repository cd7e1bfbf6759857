"""Which numbers of its rows an algorithm reads. Rows of the table."""

from __future__ import annotations

from typing import Any

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.rules.rule import Rule


def column_rules() -> tuple[Rule, ...]:
    """One for each that some algorithm does not read."""
    online: dict[str, Any] = {"grpo": {"rewards": [{"function": {"numericAnswer": {}}}]}}
    columns = "!has(self.data.columns) || !has(self.data.columns"
    return (
        Rule(
            AlignmentJobSpec,
            "a margin is read by reward models alone: take `reward: {}`, or leave the column out",
            lambda spec: _unread(spec, "margin", spec.data.columns.margin),
            f"{columns}.margin) || has(self.algorithm.reward)",
            {"spec": {"data": {"source": "pvc://data/a", "columns": {"margin": "m"}}}},
            ("data", "columns", "margin"),
        ),
        Rule(
            AlignmentJobSpec,
            "scores become margins for reward models alone: take `reward: {}`, or leave it out",
            lambda spec: _unread(spec, "margin", spec.data.margin_per_score or None),
            "!has(self.data.marginPerScore) || self.data.marginPerScore == 0.0 || has(self.algorithm.reward)",
            {"spec": {"data": {"source": "pvc://data/a", "marginPerScore": 0.1}}},
            ("data", "marginPerScore"),
        ),
        Rule(
            AlignmentJobSpec,
            "ppo and grpo weigh no prompts: leave the column out",
            lambda spec: _unread(spec, "weight", spec.data.columns.weight),
            f"{columns}.weight) || !(has(self.algorithm.ppo) || has(self.algorithm.grpo))",
            {
                "spec": {
                    "algorithm": online,
                    "data": {"source": "pvc://data/a", "columns": {"weight": "w"}},
                }
            },
            ("data", "columns", "weight"),
        ),
    )


def _unread(spec: AlignmentJobSpec, number: str, given: object) -> str | None:
    if given is None or not spec.algorithm.given or number in spec.algorithm.options.row_numbers:
        return None
    return f"{given} in a job of {spec.algorithm.name}"
