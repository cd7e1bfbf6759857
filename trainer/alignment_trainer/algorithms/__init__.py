"""The algorithms, by their key in the spec."""

from collections.abc import Callable
from typing import Any

from alignment_api.contract.algorithms import Algorithm
from alignment_trainer.algorithms.base import LossAndMetrics, OfflineAlgorithm
from alignment_trainer.algorithms.dpo import Dpo
from alignment_trainer.algorithms.grpo import Grpo
from alignment_trainer.algorithms.online import OnlineAlgorithm
from alignment_trainer.algorithms.ppo import Ppo
from alignment_trainer.algorithms.reward_model import RewardModel

OFFLINE: dict[str, Callable[..., OfflineAlgorithm]] = {"dpo": Dpo, "reward": RewardModel}
ONLINE: dict[str, Callable[..., OnlineAlgorithm]] = {"ppo": Ppo, "grpo": Grpo}


def make_algorithm(spec: Algorithm) -> OfflineAlgorithm:
    """The algorithm that the spec names, with the spec's options."""
    options: Any = getattr(spec, spec.name)
    return OFFLINE[spec.name](**dict(options))


def make_online(spec: Algorithm) -> OnlineAlgorithm:
    """The algorithm that the spec names, for one that samples while it trains."""
    return ONLINE[spec.name](spec.online)


__all__ = [
    "OFFLINE",
    "ONLINE",
    "LossAndMetrics",
    "OfflineAlgorithm",
    "OnlineAlgorithm",
    "make_algorithm",
    "make_online",
]
