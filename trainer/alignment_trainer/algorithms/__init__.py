"""The algorithms, by their key in the spec."""

from collections.abc import Callable

from alignment_api.contract.algorithms import Algorithm
from alignment_trainer.algorithms.base import LossAndMetrics, OfflineAlgorithm, ScoredRows
from alignment_trainer.algorithms.dpo import Dpo
from alignment_trainer.algorithms.grpo import Grpo
from alignment_trainer.algorithms.ipo import Ipo
from alignment_trainer.algorithms.kto import Kto
from alignment_trainer.algorithms.online import OnlineAlgorithm
from alignment_trainer.algorithms.orpo import Orpo
from alignment_trainer.algorithms.ppo import Ppo
from alignment_trainer.algorithms.reward_model import RewardModel
from alignment_trainer.algorithms.sft import Sft
from alignment_trainer.algorithms.simpo import Simpo

OFFLINE: dict[str, Callable[..., OfflineAlgorithm]] = {
    "sft": Sft,
    "kto": Kto,
    "dpo": Dpo,
    "ipo": Ipo,
    "orpo": Orpo,
    "simpo": Simpo,
    "reward": RewardModel,
}
ONLINE: dict[str, Callable[..., OnlineAlgorithm]] = {"ppo": Ppo, "grpo": Grpo}


def make_algorithm(spec: Algorithm) -> OfflineAlgorithm:
    """The algorithm that the spec names, with the spec's options."""
    return OFFLINE[spec.name](spec.options)


def make_online(spec: Algorithm) -> OnlineAlgorithm:
    """The algorithm that the spec names, for one that samples while it trains."""
    return ONLINE[spec.name](spec.online)


__all__ = [
    "OFFLINE",
    "ONLINE",
    "LossAndMetrics",
    "OfflineAlgorithm",
    "OnlineAlgorithm",
    "ScoredRows",
    "make_algorithm",
    "make_online",
]
