"""Optimizer steps share a rollout evenly. The same rule in the types and, as CEL, in the CRD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic.alias_generators import to_camel

from alignment_api.algorithms import Grpo, Online, Ppo
from alignment_api.base import WrongField

if TYPE_CHECKING:
    from alignment_api.spec import AlignmentJobSpec

_ONLINE: dict[str, type[Online]] = {"ppo": Ppo, "grpo": Grpo}


def check_batch(spec: AlignmentJobSpec) -> None:
    """Raises WrongField where training.batchSize does not divide the completions of a rollout."""
    online, batch = spec.algorithm.online, spec.training.batch_size
    if online is not None and online.completions_per_rollout % batch:
        found = f"found {batch}, which does not divide the {online.completions_per_rollout} completions of a rollout"
        raise WrongField(("training", "batchSize"), f"{found}; {_advice(type(online))}")


def batch_cel_rules() -> Iterator[tuple[str, str]]:
    """CEL over the spec, with its message, for each algorithm that samples."""
    for name, online in _ONLINE.items():
        here = f"self.algorithm.{name}"
        completions = f"{here}.promptsPerRollout * {here}.{to_camel(online.samples_field)}"
        rule = f"!has({here}) || !has(self.training) || {completions} % self.training.batchSize == 0"
        yield rule, f"training.batchSize does not divide the completions of a rollout; {_advice(online)}"


def _advice(online: type[Online]) -> str:
    return f"write a divisor of promptsPerRollout x {to_camel(online.samples_field)}, or change those"
