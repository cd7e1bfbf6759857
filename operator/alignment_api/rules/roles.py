"""Which roles a job may size: those of its algorithm. Rows of the table, made of `ROLES` and `STAGES`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from alignment_api.contract.algorithms import STAGES, roles_of
from alignment_api.contract.base import Contract
from alignment_api.contract.role_spec import Roles
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.stages import trains_reward
from alignment_api.rules.rule import Rule

ONLINE = tuple(name for name, stages in STAGES.items() if any(stage.name == "reward" for stage in stages))
"""Algorithms that may train a reward model first: ppo and grpo."""
_FUNCTION: dict[str, Any] = {"function": {"numericAnswer": {}}}
_TRAIN: dict[str, Any] = {"train": {"preferences": {"source": "pvc://data/judged.jsonl"}}}


def role_rules() -> Iterator[Rule]:
    """Every role that some job does not have, and the placement that some algorithms cannot use."""
    for algorithm in STAGES:
        for trains in (False, True) if algorithm in ONLINE else (False,):
            has = roles_of(algorithm, trains)
            missing = (role for role in Roles.model_fields if role not in has)
            yield from (_left_out(algorithm, trains, role, has) for role in missing)
    yield _reference_free()
    yield from map(_sampled, ONLINE)


def _left_out(algorithm: str, trains: bool, role: str, has: tuple[str, ...]) -> Rule:
    """A role that the job does not have."""

    def found(spec: AlignmentJobSpec) -> str | None:
        given = _given(getattr(spec.roles, role))
        return given if given and _is_such(spec, algorithm, trains) else None

    why = f"{algorithm} has no role {role} (its roles: {', '.join(has)})"
    if role == "policy" and algorithm in ONLINE:
        why += "; it trains in role actor, and role policy makes the reward model where a reward says train"
    kinds = [f"has(self.algorithm.{algorithm})"]
    if algorithm in ONLINE:
        one = f"self.algorithm.{algorithm}.rewards.exists(reward, has(reward.train))"
        kinds.append(one if trains else f"!{one}")
    return Rule(
        AlignmentJobSpec,
        f"{why}: remove it",
        found,
        _unless(kinds, role, _is_default(role)),
        {"spec": _spec(algorithm, trains) | {"roles": {role: {"memory": "8Gi"}}}},
        ("roles", role),
    )


def _reference_free() -> Rule:
    """The reference of a DPO job that says it has none."""

    def found(spec: AlignmentJobSpec) -> str | None:
        dpo, given = spec.algorithm.dpo, _given(spec.roles.reference)
        return given if given and dpo is not None and dpo.reference_free else None

    return Rule(
        AlignmentJobSpec,
        "dpo with `referenceFree` has no role reference: remove it, or leave referenceFree out",
        found,
        _unless(["has(self.algorithm.dpo)", "self.algorithm.dpo.referenceFree"], "reference", _is_default("reference")),
        {"spec": {"algorithm": {"dpo": {"referenceFree": True}}, "roles": {"reference": {"memory": "8Gi"}}}},
        ("roles", "reference"),
    )


def _sampled(algorithm: str) -> Rule:
    return Rule(
        AlignmentJobSpec,
        f"the reference is computed once, before training, and {algorithm} makes new completions at every step: write "
        "placement: spot or onDemand",
        lambda spec: (
            "withPolicy"
            if spec.algorithm.name == algorithm and spec.roles.reference.placement == "withPolicy"
            else None
        ),
        _unless([f"has(self.algorithm.{algorithm})"], "reference", "self.roles.reference.placement != 'withPolicy'"),
        {"spec": _spec(algorithm, False) | {"roles": {"reference": {"placement": "withPolicy"}}}},
        ("roles", "reference", "placement"),
    )


def _given(role: Contract) -> str:
    """What differs from the role's defaults. The apiserver writes those out, so that they say nothing."""
    default = type(role)()
    differing = (name for name in type(role).model_fields if getattr(role, name) != getattr(default, name))
    return ", ".join(str(type(role).model_fields[name].alias) for name in differing)


def _is_such(spec: AlignmentJobSpec, algorithm: str, trains: bool) -> bool:
    return (spec.algorithm.name, trains_reward(spec)) == (algorithm, trains)


def _spec(algorithm: str, trains: bool) -> dict[str, Any]:
    options = {"rewards": [_TRAIN if trains else _FUNCTION]} if algorithm in ONLINE else {}
    return {"algorithm": {algorithm: options}}


def _unless(kinds: list[str], role: str, holds: str) -> str:
    """`holds` in jobs of these kinds that give the role. Defaulting gives every role, but a rule may run before it."""
    return f"!({' && '.join(kinds)}) || !has(self.roles) || !has(self.roles.{role}) || ({holds})"


def _is_default(role: str) -> str:
    model = Roles.model_fields[role].annotation
    assert isinstance(model, type)
    assert issubclass(model, Contract)
    parts = []
    for field in model.model_fields.values():
        at = f"self.roles.{role}.{field.alias}"
        same = f"!has({at})" if field.default is None else f"(!has({at}) || {at} == {json.dumps(field.default)})"
        parts.append(same)
    return " && ".join(parts)
