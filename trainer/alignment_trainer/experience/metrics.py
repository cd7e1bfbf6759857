"""What a person wants to know of a rollout."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment_trainer.algorithms.advantages import explained_variance, groups_differ, importance_weights
from alignment_trainer.algorithms.online import Targets
from alignment_trainer.checkpoint.run_state import Position
from alignment_trainer.data.experience import Scored

COMPONENT = "reward/"
"""Begins the name of the mean of one of a job's rewards."""
_UNCAPPED = float("inf")


def rollout_metrics(scored: Scored, targets: Targets, position: Position) -> dict[str, float]:
    """By short name; nats are per token, means over tokens but for rewards and lengths, which are over completions.

    mismatch: mean of |log pi - log rollout|, by the trainer and by vLLM, of the very tokens that were sampled.
    entropy: of the policy, estimated as the mean of -log pi of what it sampled. advantage_std: before whitening. It and
    explained_variance are of completions that have a loss.
    equal_groups: share of the prompts whose completions all score the same, where each has several.
    silent_steps: 1 for a step whose advantages are all 0. Completions without a score are in no mean of scores.
    """
    rollout, mask = scored.rollout, scored.rollout.mask
    taught = mask * targets.trained[:, None]
    difference = (scored.policy_logprobs - rollout.logprobs).abs()
    has_critic = bool(scored.values.any())
    advantages = targets.returns - scored.values if has_critic else targets.advantages
    importance = importance_weights(scored.policy_logprobs, rollout.logprobs, _UNCAPPED)
    found = {
        "reward": _scored(scored.scores).mean(),
        "reward_std": _scored(scored.scores).std(unbiased=False),
        "completion_length": rollout.lengths.mean(),
        "finished": rollout.finished.float().mean(),
        "entropy": -_over_tokens(scored.policy_logprobs, mask),
        "mismatch": _over_tokens(difference, mask),
        "importance_weight": _over_tokens(importance, mask),
        "staleness": (position.version - rollout.versions.float()).mean(),
        "advantage_std": _over_tokens((advantages - _over_tokens(advantages, taught)).square(), taught).sqrt(),
        "prompts_trained": torch.tensor(len(rollout.rows)),
        "dropped_prompts": torch.tensor(len(rollout.dropped)),
        "silent_steps": torch.tensor(not targets.advantages.any()),
    }
    found |= {f"{COMPONENT}{name}": _scored(values).mean() for name, values in scored.components.items()}
    if has_critic:
        found["explained_variance"] = explained_variance(scored.values, targets.returns, taught)
    if len(scored.scores) > len(rollout.groups):
        shape = (len(rollout.groups), -1)
        differ = groups_differ(targets.scores.view(shape), targets.trained.view(shape).float())
        found["equal_groups"] = 1 - differ.float().mean()
    return {name: float(value) for name, value in found.items()}


def _scored(values: Tensor) -> Tensor:
    """Without NaN: what a function has skipped. A 0 where it has skipped all."""
    kept = values[~values.isnan()]
    return kept if len(kept) else torch.zeros(1)


def _over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Their mean; 0 over none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)
