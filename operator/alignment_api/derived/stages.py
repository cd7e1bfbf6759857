"""Which of an algorithm's stages and roles one job has."""

from __future__ import annotations

from alignment_api.contract.algorithms import STAGES
from alignment_api.contract.roles import ROLES, Stage
from alignment_api.contract.spec import AlignmentJobSpec


def stages_of(spec: AlignmentJobSpec) -> tuple[Stage, ...]:
    """The stages of this very job, with the roles that have pods in it."""
    has_pods = tuple(role for role in ROLES if _has_pods(spec, role))
    wanted = (stage for stage in STAGES[spec.algorithm.name] if stage.name != "reward" or trains_reward(spec))
    return tuple(stage.among(has_pods) for stage in wanted)


def trains_reward(spec: AlignmentJobSpec) -> bool:
    """Whether stage `reward` makes a reward model first."""
    return any(reward.train is not None for reward in spec.algorithm.rewards)


def _has_pods(spec: AlignmentJobSpec, role: str) -> bool:
    """A role placed with another has none, nor has one that this job's options make needless."""
    needless = {
        "reward": all(reward.function is not None for reward in spec.algorithm.rewards),
        "reference": not spec.algorithm.options.needs_reference,
    }
    placed_with = str(getattr(getattr(spec.roles, role), "placement", "")).startswith("with")
    return not placed_with and not needless.get(role, False)
