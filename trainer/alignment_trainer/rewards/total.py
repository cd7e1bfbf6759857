"""What completions are worth: reward models behind HTTP, functions in a process of their own, summed by weight."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment_api.contract.rewards import Rewards
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.experience import Rollout
from alignment_trainer.process.errors import WireError
from alignment_trainer.rewards import Answer, FunctionScorer
from alignment_trainer.rewards.answer import completion_text
from alignment_trainer.rewards.extraction import opens_thought
from alignment_trainer.serving.wire import load_body

Float32 = NDArray[np.float32]
ScoreGroups = Callable[[Sequence[PromptGroup], Callable[[], bool]], Float32 | None]
"""What reward models say of all completions of some groups, (models, completions); None where `stop` ended it."""

PROMPT_END = 32
"""Tokens of a prompt's end in which a tag that opens a thought is looked for."""


@dataclass(frozen=True)
class RewardSum:
    """The rewards of a job. models: None where no reward is a model. ends: token ids that end a completion."""

    rewards: Rewards
    functions: FunctionScorer
    models: ScoreGroups | None
    tokenizer: Any
    ends: tuple[int, ...]

    def text(self, tokens: Sequence[int]) -> str:
        """What reward functions see of a completion."""
        return completion_text(self.tokenizer, tokens, self.ends)

    def components(self, rollout: Rollout, stop: Callable[[], bool]) -> dict[str, Tensor] | None:
        """Each reward's scores, (N,), by its name; None where `stop` ended it."""
        found: dict[str, Tensor] = {}
        if self.models is not None:
            scores = self.models(rollout.groups, stop)
            if scores is None:
                return None
            names = model_components(self.rewards)
            found |= dict(zip(names, torch.from_numpy(scores).unbind(0), strict=True))
        told = self.functions.score(self._answers(rollout))
        return found | {name: torch.tensor(values, dtype=torch.float32) for name, values in told.items()}

    def total(self, components: Mapping[str, Tensor]) -> Tensor:
        """(N,) weighted sum; NaN where a reward that counts has skipped a completion. One of weight 0 only measures.

        One after the other: `sum` adds some elements in another order than others, and equal parts would differ.
        """
        weighted = [reward.weight * components[reward.component] for reward in self.rewards if reward.weight]
        return reduce(torch.add, weighted)

    def _answers(self, rollout: Rollout) -> list[Answer]:
        return [
            Answer(self.text(completion), len(completion), row.fields, self._ends_in_thought(group.prompt))
            for row, group in zip(rollout.rows, rollout.groups, strict=True)
            for completion in group.completions
        ]

    def _ends_in_thought(self, prompt: Sequence[int]) -> bool:
        return opens_thought(self.tokenizer.decode(prompt[-PROMPT_END:], skip_special_tokens=False))


def model_components(rewards: Rewards) -> tuple[str, ...]:
    """Names of the rewards that are models, in the order of the spec."""
    return tuple(reward.component for reward in rewards if reward.function is None)


def score_decoder(rewards: Rewards) -> Callable[[bytes, Sequence[PromptGroup]], Float32]:
    """Reads what a reward server says of some groups: (models, completions)."""
    names = model_components(rewards)

    def decode(body: bytes, groups: Sequence[PromptGroup]) -> Float32:
        arrays, metadata = load_body(body)
        scores, expected = arrays.get("scores"), (len(names), sum(len(group.completions) for group in groups))
        if scores is None or scores.shape != expected:
            raise WireError(f"no `scores` of shape {expected}; found {sorted(arrays)}")
        if tuple(json.loads(metadata.get("components", "[]"))) != names:
            raise WireError(f"scores of {metadata.get('components')}, expected {list(names)}")
        result: Float32 = scores.astype(np.float32)
        return result

    return decode
