"""Which roles a job may size: those of its algorithm. The same rules in the types and, as CEL, in the CRD."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alignment_api.base import Contract, WrongField
from alignment_api.role_spec import Roles
from alignment_api.roles import STAGES, roles_of

if TYPE_CHECKING:
    from alignment_api.spec import AlignmentJobSpec

ONLINE = tuple(name for name, stages in STAGES.items() if any(stage.name == "reward" for stage in stages))
"""Algorithms that may train a reward model first: ppo and grpo."""
_SAMPLED = (
    "with `withPolicy` the reference is computed once, before training, and {algorithm} makes new completions at "
)
_SAMPLED += "every step; write placement: spot or onDemand"


@dataclass(frozen=True)
class RoleRule:
    """A role that must be left as its defaults are, in jobs of one algorithm."""

    algorithm: str
    trains_reward: bool
    """It holds for jobs in which a reward says `train`, or for those in which none does."""
    role: str
    message: str


def role_rules() -> Iterator[RoleRule]:
    """Every role that some job does not have."""
    for algorithm in STAGES:
        for trains_reward in (False, True) if algorithm in ONLINE else (False,):
            has = roles_of(algorithm, trains_reward)
            for role in Roles.model_fields:
                if role not in has:
                    yield RoleRule(algorithm, trains_reward, role, _message(algorithm, role, has))


def check_roles(spec: AlignmentJobSpec) -> None:
    """Raises WrongField for a role that the job does not have, and for a placement that its algorithm cannot use."""
    algorithm = spec.algorithm
    trains = any(reward.train is not None for reward in algorithm.rewards)
    for rule in role_rules():
        if (rule.algorithm, rule.trains_reward) == (algorithm.name, trains) and _is_given(
            getattr(spec.roles, rule.role)
        ):
            raise WrongField(("roles", rule.role), rule.message)
    if algorithm.online is not None and spec.roles.reference.placement == "withPolicy":
        raise WrongField(("roles", "reference", "placement"), sampled_message(algorithm.name))


def sampled_message(algorithm: str) -> str:
    """Why the reference of PPO and GRPO cannot be computed before training."""
    return _SAMPLED.format(algorithm=algorithm)


def _is_given(role: Contract) -> bool:
    """The apiserver writes defaults out, so that only a value that differs says something."""
    return bool(role != type(role)())


def _message(algorithm: str, role: str, has: tuple[str, ...]) -> str:
    why = f"{algorithm} has no role {role} (its roles: {', '.join(has)})"
    if role == "policy" and algorithm in ONLINE:
        why += "; it trains in role actor, and role policy makes the reward model where a reward says `train`"
    return f"{why}; remove it"
