"""The rules of the table, each with the manifest of its example: what Python and the apiserver are both asked."""

from __future__ import annotations

import json
from typing import Any

from alignment_api.rules.rule import Rule
from alignment_api.rules.table import RULES

JOB: dict[str, Any] = {
    "apiVersion": "alignment.run/v1alpha1",
    "kind": "AlignmentJob",
    "metadata": {"name": "sound"},
    "spec": {
        "model": {"source": "pvc://models/base"},
        "data": {"source": "pvc://data/pairs.jsonl"},
        "algorithm": {"dpo": {}},
    },
}


def examples() -> dict[str, Rule]:
    """A name for each rule, by which a test is found again."""
    return {f"{number}-{rule.of.__name__}-{'.'.join(rule.field)}": rule for number, rule in enumerate(RULES)}


def broken_job(rule: Rule) -> dict[str, Any]:
    """A sound job with the rule's example over it."""
    return JOB | {key: JOB[key] | fields for key, fields in rule.example.items()}


def broken_text(rule: Rule) -> str:
    """The same as a manifest's text, on one line."""
    return json.dumps(broken_job(rule))
