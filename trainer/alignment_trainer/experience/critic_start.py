"""What a critic starts from: the job's reward model, or the policy's own with a head of zeros."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from alignment_api.contract.rewards import Reward
from alignment_trainer.model.folder import config_of
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.instance import Instance
from alignment_trainer.rewards.models import find_reward_models

log = logging.getLogger(__name__)

_SHAPE = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
"""Of a model's config: what decides its size, which the platform has planned for, and its tokens."""


@dataclass(frozen=True)
class CriticStart:
    """folder: of the model. unit: of the score, for one unit of what its head says; None for a new head of zeros."""

    folder: Path
    unit: float | None = None


def critic_start(instance: Instance, model: Path) -> CriticStart:
    """As `critic.from` says. model: the policy's folder, as it came.

    Raises UserError where it says rewardModel, and that has another shape.
    """
    ppo = instance.spec.algorithm.ppo
    if ppo is None:
        raise ValueError(f"algorithm {instance.spec.algorithm.name} has no critic")
    reward = ppo.critic_reward
    if reward is None:
        return CriticStart(model)
    folder = next(found.folder for found in find_reward_models(instance) if found.component == reward.component)
    if has_same_shape(instance, reward, folder, model):
        return CriticStart(folder, reward.weight)
    return CriticStart(model)


def has_same_shape(instance: Instance, reward: Reward, folder: Path, model: Path) -> bool:
    """Whether a critic may start from the reward model in `folder`: it has the shape of the policy.

    Raises UserError where it has not, and `critic.from` says that it shall.
    """
    other = _difference(folder, model)
    if other is None:
        return True
    ppo = instance.spec.algorithm.ppo
    if ppo is not None and ppo.critic.start_from == "rewardModel":
        raise UserError(
            "InvalidModel",
            f"spec.algorithm.ppo.critic.from: found rewardModel, but reward `{reward.component}` has {other}; a critic "
            "has the shape of spec.model: leave it out, or write model",
        )
    log.info("the critic starts from spec.model: reward %s has %s", reward.component, other)
    return False


def _difference(folder: Path, model: Path) -> str | None:
    theirs, own = (config_of(each) for each in (folder, model))
    for name in _SHAPE:
        found, wanted = getattr(theirs, name, None), getattr(own, name, None)
        if found != wanted:
            return f"{name} {found}, where spec.model has {wanted}"
    return None
