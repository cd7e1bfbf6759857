"""Options that nothing would read beside what else the manifest says. Rows of the table.

The apiserver writes defaults out, so that an option at its default says nothing.
"""

from __future__ import annotations

from typing import Any

from alignment_api.contract.algorithms import Ppo
from alignment_api.contract.base import Contract
from alignment_api.contract.inputs import Data, Model
from alignment_api.contract.rewards import PythonFunction
from alignment_api.rules.rule import Rule

_HUB = "hf://"
_FUNCTION: dict[str, Any] = {"function": {"numericAnswer": {}}}


def unread_rules() -> tuple[Rule, ...]:
    """One for each such option."""
    return *_of_the_hub(), *_of_what_is_off()


def _of_the_hub() -> tuple[Rule, ...]:
    """Read where the hub is."""
    of_hub = f"self.source.startsWith('{_HUB}')"
    held_out = "has(self.evaluation) && has(self.evaluation.source) && self.evaluation.source"
    rows_of_hub = f"{of_hub} || ({held_out}.startsWith('{_HUB}'))"
    rows = "pvc://data/rows.jsonl"
    return (
        Rule(
            Data,
            "only data sets of the hub have splits: leave it out, and write the files of one as source",
            lambda data: None if _reads_hub(data) or _is_default(data, "split") else f"`{data.split}` of {data.source}",
            f"{rows_of_hub} || !has(self.split) || self.split == 'train'",
            {"spec": {"data": {"source": rows, "split": "test"}}},
            ("split",),
        ),
        Rule(
            Data,
            "only data sets of the hub have revisions: leave it out",
            lambda data: None if _reads_hub(data) else _revision(data),
            f"{rows_of_hub} || !has(self.revision) || self.revision == 'main'",
            {"spec": {"data": {"source": rows, "revision": "v2"}}},
            ("revision",),
        ),
        Rule(
            Model,
            "only models of the hub have revisions: leave it out",
            lambda model: None if model.source.startswith(_HUB) else _revision(model),
            f"{of_hub} || !has(self.revision) || self.revision == 'main'",
            {"spec": {"model": {"source": "pvc://models/base", "revision": "v2"}}},
            ("revision",),
        ),
    )


def _of_what_is_off() -> tuple[Rule, ...]:
    """Read where what they belong to is on."""
    skipped = {"entrypoint": "a:b", "maxSkippedFraction": 0.5}
    return (
        Rule(
            Ppo,
            "a targetKl of 0 leaves the weight as it is, and nothing has a horizon: leave klHorizon out",
            lambda ppo: None if ppo.target_kl or _is_default(ppo, "kl_horizon") else f"{ppo.kl_horizon}",
            "!has(self.targetKl) || self.targetKl > 0.0 || !has(self.klHorizon) || self.klHorizon == 10000",
            {"spec": {"algorithm": {"ppo": {"rewards": [_FUNCTION], "targetKl": 0, "klHorizon": 5000}}}},
            ("klHorizon",),
        ),
        Rule(
            PythonFunction,
            "nothing is skipped where an error ends the job: write `onError: skip` beside it, or leave it out",
            lambda function: (
                None
                if function.on_error == "skip" or _is_default(function, "max_skipped_fraction")
                else f"{function.max_skipped_fraction:g}"
            ),
            "(has(self.onError) && self.onError == 'skip') || !has(self.maxSkippedFraction) || "
            "self.maxSkippedFraction == 0.05",
            {"spec": {"algorithm": {"grpo": {"rewards": [{"function": {"python": skipped}}]}}}},
            ("maxSkippedFraction",),
        ),
    )


def _reads_hub(data: Data) -> bool:
    return any(source.startswith(_HUB) for source in (data.source, data.evaluation.source) if source is not None)


def _revision(of: Data | Model) -> str | None:
    return None if _is_default(of, "revision") else f"`{of.revision}` of {of.source}"


def _is_default(value: Contract, name: str) -> bool:
    return bool(getattr(value, name) == type(value).model_fields[name].default)
