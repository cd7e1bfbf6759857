"""The offline algorithms, by their key in the spec."""

from collections.abc import Callable
from typing import Any

from alignment_api.algorithms import Algorithm
from alignment_trainer.algorithms.base import LossAndMetrics, OfflineAlgorithm
from alignment_trainer.algorithms.dpo import Dpo
from alignment_trainer.algorithms.reward import RewardModel

OFFLINE: dict[str, Callable[..., OfflineAlgorithm]] = {"dpo": Dpo, "reward": RewardModel}


def make_algorithm(spec: Algorithm) -> OfflineAlgorithm:
    """The algorithm that the spec names, with the spec's options."""
    options: Any = getattr(spec, spec.name)
    return OFFLINE[spec.name](**dict(options))


__all__ = ["OFFLINE", "LossAndMetrics", "OfflineAlgorithm", "make_algorithm"]
