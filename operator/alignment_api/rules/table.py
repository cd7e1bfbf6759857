"""The rules, one after the other. A new one is a row here: everything else, its tests included, reads the table."""

from __future__ import annotations

import re
from typing import Any

from pydantic.alias_generators import to_camel

from alignment_api.contract.algorithms import Algorithm, Dpo, Grpo, Online, Ppo
from alignment_api.contract.base import Contract
from alignment_api.contract.inputs import Evaluation
from alignment_api.contract.job import MAX_NAME, ObjectMeta
from alignment_api.contract.rewards import Reward, RewardFunction
from alignment_api.contract.role_spec import AcceleratedRole
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.rules.adapters import adapter_rules
from alignment_api.rules.roles import role_rules
from alignment_api.rules.rows import row_rules
from alignment_api.rules.rule import Rule
from alignment_api.rules.unread import unread_rules

Fields = dict[str, Any]
_PATTERN = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
_FUNCTION: Fields = {"function": {"numericAnswer": {}}}
_MODEL: Fields = {"model": {"source": "hf://org/judge"}}
_TRAIN: Fields = {"train": {"preferences": {"source": "pvc://data/judged.jsonl"}}}


def _online(name: str = "ppo", *rewards: Fields, **options: Any) -> Fields:
    """A manifest's fields of a PPO or GRPO job."""
    return {"spec": {"algorithm": {name: {"rewards": list(rewards) or [_FUNCTION], **options}}}}


def _exactly_one(names: list[str]) -> str:
    return f"[{', '.join(f'has(self.{name})' for name in names)}].filter(given, given).size() == 1"


def _not_one(given: tuple[str, ...]) -> str | None:
    return None if len(given) == 1 else " and ".join(map(to_camel, given)) or "none"


def _both(value: Contract, one: str, other: str) -> str | None:
    given = [f"{name}: {getattr(value, name)}" for name in (one, other) if getattr(value, name) is not None]
    return " and ".join(given) if len(given) == 2 else None


def _trained(online: Online) -> int:
    return sum(reward.train is not None for reward in online.rewards)


def _same_name(online: Online) -> str | None:
    names = [reward.component for reward in online.rewards if len(reward.given) == 1]
    return next((f"`{name}` twice" for name in names if names.count(name) > 1), None)


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


def _uneven_batch(spec: AlignmentJobSpec, algorithm: type[Online]) -> str | None:
    online, batch = spec.algorithm.online, spec.training.batch_size
    if not isinstance(online, algorithm) or online.completions_per_rollout % batch == 0:
        return None
    return f"{batch}, and a rollout has {online.completions_per_rollout} completions"


def _no_room(spec: AlignmentJobSpec, algorithm: type[Online]) -> str | None:
    online, longest = spec.algorithm.online, spec.training.max_length
    if not isinstance(online, algorithm) or online.max_new_tokens < longest:
        return None
    return f"{online.max_new_tokens}, and spec.training.maxLength is {longest}"


def _rules_of(name: str, algorithm: type[Online]) -> tuple[Rule, ...]:
    """Those of an algorithm that samples, over more than its own options."""
    here, samples = f"self.algorithm.{name}", to_camel(algorithm.samples_field)
    elsewhere = f"!has({here}) || !has(self.training)"
    return (
        Rule(
            AlignmentJobSpec,
            "the batch size must divide the completions of a rollout: write a divisor of "
            f"promptsPerRollout x {samples}, or change those",
            lambda spec: _uneven_batch(spec, algorithm),
            f"{elsewhere} || {here}.promptsPerRollout * {here}.{samples} % self.training.batchSize == 0",
            _with_training(_online(name, promptsPerRollout=16, **{samples: 8}), batchSize=48),
            ("training", "batchSize"),
        ),
        Rule(
            AlignmentJobSpec,
            "prompt and completion together stay within training.maxLength: lower maxNewTokens, or raise maxLength",
            lambda spec: _no_room(spec, algorithm),
            f"{elsewhere} || {here}.maxNewTokens < self.training.maxLength",
            _with_training(_online(name, maxNewTokens=256), maxLength=256),
            ("algorithm", name, "maxNewTokens"),
        ),
    )


def _with_training(manifest: Fields, **training: Any) -> Fields:
    return {"spec": manifest["spec"] | {"training": training}}


def _in_a_bucket(spec: AlignmentJobSpec, problem: str | None) -> str | None:
    """The problem of a job whose storage is a bucket."""
    storage = spec.storage
    return f"{storage.source} and {problem}" if storage and problem and storage.source.startswith("s3://") else None


def _bucket_rules() -> tuple[Rule, ...]:
    """What a storage in a bucket is not for."""
    elsewhere, bucket = "!has(self.storage) || !self.storage.source.startsWith('s3://')", {"source": "s3://bucket/run"}
    folder = "write pvc://claim/path, or leave storage out"
    return (
        Rule(
            AlignmentJobSpec,
            f"ppo and grpo keep more in their storage than a bucket holds for them yet: {folder}",
            lambda spec: _in_a_bucket(spec, spec.algorithm.name if spec.algorithm.online else None),
            f"{elsewhere} || !(has(self.algorithm.ppo) || has(self.algorithm.grpo))",
            {"spec": _online("grpo")["spec"] | {"storage": bucket}},
            ("storage", "source"),
        ),
        Rule(
            AlignmentJobSpec,
            f"the pods of one policy share no copy of what lies in a bucket yet: write replicas: 1, or {folder}",
            lambda spec: _in_a_bucket(spec, f"{n} replicas" if (n := spec.roles.policy.replicas) > 1 else None),
            f"{elsewhere} || !has(self.roles) || !has(self.roles.policy) || self.roles.policy.replicas <= 1",
            {"spec": {"roles": {"policy": {"replicas": 2}}, "storage": bucket}},
            ("storage", "source"),
        ),
        Rule(
            AlignmentJobSpec,
            f"TensorBoard's events are appended to, which no bucket allows: write false, or {folder}",
            lambda spec: _in_a_bucket(spec, "true" if spec.tracking.tensorboard else None),
            f"{elsewhere} || !has(self.tracking) || !self.tracking.tensorboard",
            {"spec": {"tracking": {"tensorboard": True}, "storage": bucket}},
            ("tracking", "tensorboard"),
        ),
    )


RULES: tuple[Rule, ...] = (
    Rule(
        ObjectMeta,
        f"pods and Services are named after the job: write at most {MAX_NAME} characters",
        lambda meta: None if len(meta.name) <= MAX_NAME else f"{len(meta.name)} characters",
        f"size(self.name) <= {MAX_NAME}",
        {"metadata": {"name": "n" * (MAX_NAME + 1)}},
        ("name",),
    ),
    Rule(
        ObjectMeta,
        "pods and Services are named after the job: write lower case letters, digits and dashes, a letter first",
        lambda meta: None if re.fullmatch(_PATTERN, meta.name) else f"`{meta.name}`",
        f"self.name.matches('{_PATTERN}')",
        {"metadata": {"name": "7b-dpo"}},
        ("name",),
    ),
    Rule(
        Algorithm,
        "exactly one algorithm must be given: write for example `dpo: {beta: 0.1}`",
        lambda algorithm: _not_one(algorithm.given),
        _exactly_one(list(Algorithm.model_fields)),
        {"spec": {"algorithm": {}}},
    ),
    Rule(
        Dpo,
        "robust corrects for labels that are flipped as often as labelSmoothing says: write for example "
        "`labelSmoothing: 0.1` beside it, or leave robust out",
        lambda dpo: "robust with a labelSmoothing of 0" if dpo.robust and not dpo.label_smoothing else None,
        "!self.robust || self.labelSmoothing > 0.0",
        {"spec": {"algorithm": {"dpo": {"robust": True}}}},
        ("robust",),
    ),
    Rule(
        Evaluation,
        "fraction and source exclude each other: keep one",
        lambda rows: _both(rows, "fraction", "source"),
        "!(has(self.fraction) && has(self.source))",
        {"spec": {"data": {"source": "pvc://data/a", "evaluation": {"fraction": 0.1, "source": "pvc://data/b"}}}},
    ),
    Rule(
        AcceleratedRole,
        "gpus and processes exclude each other: processes are for pools without GPUs",
        lambda role: _both(role, "gpus", "processes"),
        "!(has(self.gpus) && has(self.processes))",
        {"spec": {"roles": {"policy": {"gpus": 1, "processes": 1}}}},
    ),
    Rule(
        RewardFunction,
        "exactly one function must be given: write for example `function: {numericAnswer: {}}`; known are "
        + ", ".join(RewardFunction.kinds().values()),
        lambda function: _not_one(function.given),
        _exactly_one(list(RewardFunction.kinds().values())),
        _online("grpo", {"function": {"numericAnswer": {}, "regex": {"pattern": "a"}}}),
    ),
    Rule(
        Reward,
        "exactly one of train, model and function must be given: write for example "
        "`{weight: 1.0, function: {numericAnswer: {}}}`",
        lambda reward: _not_one(reward.given),
        _exactly_one(["train", "model", "function"]),
        _online("grpo", _FUNCTION | _MODEL),
    ),
    Rule(
        Online,
        "a job trains one reward model: keep one `train`, name others as `model`",
        lambda online: f"{trained} that say train" if (trained := _trained(online)) > 1 else None,
        "self.rewards.filter(reward, has(reward.train)).size() <= 1",
        _online("ppo", _TRAIN | {"name": "one"}, _TRAIN | {"name": "two"}),
        ("rewards",),
    ),
    Rule(
        Online,
        "every reward has a name of its own: give each a `name`",
        _same_name,
        f"self.rewards.all(one, self.rewards.filter(other, {_component('one')} == {_component('other')}).size() == 1)",
        _online("grpo", _FUNCTION, _FUNCTION),
        ("rewards",),
    ),
    Rule(
        Online,
        "there is nothing to learn: give a reward a weight above 0",
        lambda online: None if any(reward.weight for reward in online.rewards) else "weight 0 in every reward",
        "self.rewards.exists(reward, reward.weight > 0.0)",
        _online("grpo", _FUNCTION | {"weight": 0}),
        ("rewards",),
    ),
    Rule(
        Online,
        "`truncated: mask` learns nothing from a completion that was cut off: leave one of them out",
        lambda online: (
            f"{online.missing_eos_penalty:g}" if online.truncated == "mask" and online.missing_eos_penalty else None
        ),
        "self.truncated != 'mask' || !has(self.missingEosPenalty) || self.missingEosPenalty == 0.0",
        _online("ppo", truncated="mask", missingEosPenalty=0.5),
        ("missingEosPenalty",),
    ),
    Rule(
        Ppo,
        "no reward of a weight above 0 says train, and not exactly one is a model: leave it out, or write model",
        lambda ppo: "rewardModel" if ppo.critic.start_from == "rewardModel" and ppo.critic_reward is None else None,
        "!has(self.critic) || !has(self.critic.from) || self.critic.from != 'rewardModel'"
        " || self.rewards.exists(reward, has(reward.train) && reward.weight > 0.0)"
        " || self.rewards.filter(reward, has(reward.model) && reward.weight > 0.0).size() == 1",
        _online("ppo", critic={"from": "rewardModel"}),
        ("critic", "from"),
    ),
    *_rules_of("ppo", Ppo),
    *_rules_of("grpo", Grpo),
    *_bucket_rules(),
    *adapter_rules(),
    *row_rules(),
    *unread_rules(),
    *role_rules(),
)
