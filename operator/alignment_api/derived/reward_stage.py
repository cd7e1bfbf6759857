"""Stage `reward` of a PPO or GRPO job, seen as the job of algorithm `reward` that it is."""

from __future__ import annotations

from alignment_api.contract.algorithms import Algorithm, RewardModel
from alignment_api.contract.roles import StageName
from alignment_api.contract.spec import AlignmentJobSpec

REWARD_FOLDER = "reward"
"""Folder of the job's storage in which stage `reward` has its own prepared data, claims, checkpoints and model."""
LEAST_HELD_OUT = 200
"""Held-out pairs on which a reward model must beat chance before anything is trained against it."""


def reward_job(spec: AlignmentJobSpec) -> AlignmentJobSpec | None:
    """The spec of stage `reward`; None where no reward says `train`."""
    training = next((reward.train for reward in spec.algorithm.rewards if reward.train is not None), None)
    if training is None:
        return None
    steps = {
        "learning_rate": training.learning_rate,
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "max_steps": None,
    }
    return spec.model_copy(
        update={
            "model": training.model or spec.model,
            "data": training.preferences,
            "algorithm": Algorithm(reward=RewardModel()),
            "training": spec.training.model_copy(update=steps),
            "checkpoint": spec.checkpoint.model_copy(update={"resume_from": None}),
        }
    )


def training_field(spec: AlignmentJobSpec) -> str:
    """Where the manifest says `train`: `spec.algorithm.ppo.rewards[0].train`. Raises ValueError where it does not."""
    index = [reward.train is not None for reward in spec.algorithm.rewards].index(True)
    return f"spec.algorithm.{spec.algorithm.name}.rewards[{index}].train"


def spec_of_stage(spec: AlignmentJobSpec, stage: StageName) -> AlignmentJobSpec:
    """The spec that the roles of a stage follow."""
    return (reward_job(spec) or spec) if stage == "reward" else spec
