"""A sampled completion leaves room for its prompt. The same rule in the types and, as CEL, in the CRD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from alignment_api.base import WrongField

if TYPE_CHECKING:
    from alignment_api.spec import AlignmentJobSpec

_ADVICE = "prompt and completion together stay within maxLength: lower maxNewTokens, or raise maxLength"


def check_lengths(spec: AlignmentJobSpec) -> None:
    """Raises WrongField where completions of maxNewTokens leave no prompt a token of training.maxLength."""
    online, longest = spec.algorithm.online, spec.training.max_length
    if online is not None and online.max_new_tokens >= longest:
        found = f"found {online.max_new_tokens}, and spec.training.maxLength is {longest}"
        raise WrongField(("algorithm", str(spec.algorithm.name), "maxNewTokens"), f"{found}; {_ADVICE}")


def length_cel_rules() -> Iterator[tuple[str, str]]:
    """CEL over the spec, with its message, for each algorithm that samples."""
    for name in ("ppo", "grpo"):
        here = f"self.algorithm.{name}"
        rule = f"!has({here}) || !has(self.training) || {here}.maxNewTokens < self.training.maxLength"
        yield rule, f"algorithm.{name}.maxNewTokens leaves no room for a prompt; {_ADVICE}"
