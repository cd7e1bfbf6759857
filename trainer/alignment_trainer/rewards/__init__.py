"""Reward functions: what a completion is worth by its text alone, computed in a process of its own."""

from alignment_trainer.rewards.answer import Answer
from alignment_trainer.rewards.scorer import FunctionScorer
from alignment_trainer.rewards.trial import check_functions

__all__ = ["Answer", "FunctionScorer", "check_functions"]
