"""CEL rules of the CRD: what a schema cannot say. Derived from the types, so that the two cannot drift apart."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import starmap
from typing import Any

from pydantic import BaseModel

from alignment_api.algorithms import Algorithm
from alignment_api.batch_rule import batch_cel_rules
from alignment_api.job import MAX_NAME
from alignment_api.length_rule import length_cel_rules
from alignment_api.mutability import MUTABLE, SCALABLE
from alignment_api.rewards import RewardFunction
from alignment_api.role_rules import ONLINE, role_rules, sampled_message
from alignment_api.role_spec import Roles
from alignment_api.spec import AlignmentJobSpec

Schema = dict[str, Any]
Place = tuple[str, ...]
"""Properties from the root of the schema; ITEM stands for the items of a list."""

ITEM = "[]"
_FIX = "delete the job and apply it anew; a new name with checkpoint.resumeFrom starts from its weights"
_ORIGINS = "fraction and source exclude each other; keep one"


def cel_rules() -> Mapping[Place, list[Schema]]:
    """Place -> the rules there."""
    rules: dict[Place, list[Schema]] = {
        (): _name_rules(),
        ("spec",): [
            *_immutable(AlignmentJobSpec, (), apart=("roles",)),
            *_role_rules(),
            *starmap(make_rule, batch_cel_rules()),
            *starmap(make_rule, length_cel_rules()),
        ],
        ("spec", "algorithm"): [_exactly_one(_aliases(Algorithm), "algorithm", "dpo: {beta: 0.1}")],
        ("spec", "data", "evaluation"): [_one_origin()],
        ("spec", "roles"): _immutable(Roles, ("roles",), apart=SCALABLE),
    }
    for algorithm in ONLINE:
        rules |= _reward_rules(("spec", "algorithm", algorithm))
    for role, model in _role_models().items():
        rules |= _size_rules(("spec", "roles", role), model)
    for role in SCALABLE:
        rules["spec", "roles", role] += _immutable(_role_models()[role], ("roles", role))
    return rules


def make_rule(rule: str, message: str) -> Schema:
    """One entry of x-kubernetes-validations."""
    return {"rule": rule, "message": message}


def _name_rules() -> list[Schema]:
    return [
        make_rule(
            f"size(self.metadata.name) <= {MAX_NAME}",
            f"metadata.name has more than {MAX_NAME} characters; shorten it: pods and Services are named after it",
        ),
        make_rule(
            "self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name must be lower case letters, digits and dashes; remove the dots",
        ),
    ]


def _exactly_one(names: list[str], what: str, example: str) -> Schema:
    given = ", ".join(f"has(self.{name})" for name in names)
    return make_rule(
        f"[{given}].filter(one, one).size() == 1",
        f"exactly one {what} must be given; write for example `{example}`",
    )


def _one_origin() -> Schema:
    return make_rule("!(has(self.fraction) && has(self.source))", _ORIGINS)


def _reward_rules(algorithm: Place) -> dict[Place, list[Schema]]:
    reward = (*algorithm, "rewards", ITEM)
    functions = list(RewardFunction.kinds().values())
    kinds = _exactly_one(
        ["train", "model", "function"], "of train, model and function", "function: {numericAnswer: {}}"
    )
    return {
        (*algorithm, "rewards"): [
            make_rule(
                "self.filter(reward, has(reward.train)).size() <= 1",
                "more than one reward says train; a job trains one, name others as model",
            ),
            make_rule(
                "self.exists(reward, reward.weight > 0.0)",
                "every reward has weight 0, so there is nothing to learn; give one a weight above 0",
            ),
            make_rule(
                f"self.all(one, self.filter(other, {_component('one')} == {_component('other')}).size() == 1)",
                "two rewards have one name; give each a name of its own",
            ),
        ],
        reward: [kinds],
        (*reward, "function"): [_exactly_one(functions, "function", "function: {numericAnswer: {}}")],
        (*reward, "train", "preferences", "evaluation"): [_one_origin()],
    }


def _component(reward: str) -> str:
    """CEL for what `Reward.component` says of this reward; of one without a kind, which another rule refuses, ''."""
    said = [
        f"has({reward}.name) ? {reward}.name",
        f"has({reward}.train) ? 'trained'",
        f"has({reward}.model) ? 'model'",
        f"!has({reward}.function) ? ''",
        *(f"has({reward}.function.{alias}) ? '{name}'" for name, alias in RewardFunction.kinds().items()),
    ]
    return f"({' : '.join(said)} : '')"


def _size_rules(place: Place, model: type[BaseModel]) -> dict[Place, list[Schema]]:
    """`place`: a role of the spec."""
    sizes = _aliases(model)
    rules: dict[Place, list[Schema]] = {place: []}
    if {"gpus", "processes"} <= set(sizes):
        advice = "gpus and processes exclude each other; processes is for pools without GPUs"
        rules[place].append(make_rule("!(has(self.gpus) && has(self.processes))", advice))
    for size in ("cpu", "memory", "ephemeralStorage", "kvCacheMemory"):
        if size in sizes:
            rules[*place, size] = [_above_zero(size)]
    return rules


def _above_zero(size: str) -> Schema:
    number = "type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))"
    return make_rule(number, f"{size} must be above zero; write cores as 4 or 500m, memory as 16Gi")


def _role_rules() -> Iterator[Schema]:
    """Roles that the job's algorithm does not have, told from those that it has by their defaults."""
    for rule in role_rules():
        trains = f"self.algorithm.{rule.algorithm}.rewards.exists(reward, has(reward.train))"
        kinds = [f"has(self.algorithm.{rule.algorithm})"]
        if rule.algorithm in ONLINE:
            kinds.append(trains if rule.trains_reward else f"!{trains}")
        yield make_rule(_unless(kinds, rule.role, _is_default(rule.role)), f"roles.{rule.role}: {rule.message}")
    for algorithm in ONLINE:
        kept = "self.roles.reference.placement != 'withPolicy'"
        message = f"roles.reference.placement: {sampled_message(algorithm)}"
        yield make_rule(_unless([f"has(self.algorithm.{algorithm})"], "reference", kept), message)


def _unless(kinds: list[str], role: str, holds: str) -> str:
    """`holds` in jobs of these kinds that give the role. Defaulting gives every role, but a rule may run before it."""
    return f"!({' && '.join(kinds)}) || !has(self.roles) || !has(self.roles.{role}) || ({holds})"


def _is_default(role: str) -> str:
    model = _role_models()[role]
    here = f"self.roles.{role}"
    parts = []
    for field in model.model_fields.values():
        at = f"{here}.{field.alias}"
        same = f"!has({at})" if field.default is None else f"(!has({at}) || {at} == {json.dumps(field.default)})"
        parts.append(same)
    return " && ".join(parts)


def _immutable(model: type[BaseModel], path: Place, apart: tuple[str, ...] = ()) -> list[Schema]:
    """A rule for each field of `model`, which stands at `path` below spec, but those that may change or stand apart."""
    names = [name for name in _aliases(model) if name not in apart and (*path, name) not in MUTABLE]
    return [_unchanged(name, ".".join(("spec", *path, name))) for name in names]


def _unchanged(field: str, path: str) -> Schema:
    same = f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})"
    return make_rule(same, f"{path} is immutable: {_FIX}") | {"fieldPath": f".{field}", "reason": "FieldValueForbidden"}


def _role_models() -> dict[str, type[BaseModel]]:
    return {str(field.alias): _model_of(field.annotation) for field in Roles.model_fields.values()}


def _aliases(model: type[BaseModel]) -> list[str]:
    return [str(field.alias) for field in model.model_fields.values()]


def _model_of(annotation: Any) -> type[BaseModel]:
    assert isinstance(annotation, type)
    assert issubclass(annotation, BaseModel), annotation
    return annotation
