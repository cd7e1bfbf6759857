"""What PPO and GRPO need beside data and model, checked by `prepare` before anything costly starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from alignment_api.contract.status import ModelReport
from alignment_trainer.data.pins import manifest_of
from alignment_trainer.data.prepared import open_prompts
from alignment_trainer.data.sources import resolve_model
from alignment_trainer.data.storage import storage_of
from alignment_trainer.experience.critic_start import has_same_shape
from alignment_trainer.model.cache_memory import check_cache_memory
from alignment_trainer.model.folder import config_of
from alignment_trainer.model.inspect import (
    Named,
    Pinned,
    check_model,
    check_same_tokenizer,
    inspection_of,
    load_tokenizer,
    reward_model,
)
from alignment_trainer.process.instance import Instance
from alignment_trainer.rewards import check_functions
from alignment_trainer.rewards.models import named_models


def check_online(instance: Instance, policy: Path, trained: Sequence[Pinned]) -> dict[str, ModelReport]:
    """The reward models that exist, pinned, by the reward's name. Raises UserError for what could not work later.

    policy: its folder. trained: what stage `reward` starts from.
    """
    spec = instance.spec
    check_cache_memory(spec, config_of(policy))
    tokenizer = load_tokenizer(spec.model.source, policy)
    pinned = {component: _pin(instance, component, named) for component, named in named_models(spec)}
    for model in (*trained, *pinned.values()):
        theirs = load_tokenizer(model.named.model.source, model.resolved.path, model.named.field)
        check_same_tokenizer(model.named, theirs, tokenizer)
    _check_critic(instance, policy, trained, pinned)
    check_functions(spec.algorithm.rewards, instance.context.sources, _field(instance))
    return {component: model.report for component, model in pinned.items()}


def _check_critic(instance: Instance, policy: Path, trained: Sequence[Pinned], pinned: Mapping[str, Pinned]) -> None:
    """Raises UserError where the critic cannot start from the reward model that `critic.from` asks for."""
    ppo = instance.spec.algorithm.ppo
    reward = ppo.critic_reward if ppo is not None else None
    if reward is not None:
        model = pinned[reward.component] if reward.model is not None else trained[0]
        has_same_shape(instance, reward, model.resolved.path, policy)


def check_rows(instance: Instance) -> str | None:
    """Tries the reward functions on what the prepared prompts say. Raises UserError that names the row.

    Returns why they keep the network of this process; None where they have none, or ask for it.
    """
    prepared = open_prompts(storage_of(instance))
    rows = (example.fields for example in chain(prepared.train, prepared.evaluation))
    return check_functions(instance.spec.algorithm.rewards, instance.context.sources, _field(instance), rows)


def _field(instance: Instance) -> str:
    return f"spec.algorithm.{instance.spec.algorithm.name}"


def _pin(instance: Instance, component: str, named: Named) -> Pinned:
    """At the commit that an earlier life pinned, if any."""
    former = manifest_of(instance)
    origin = f"{named.model.source}@{named.model.revision}"
    same = former is not None and former.origins.get(f"rewards/{component}") == origin
    found = former.reward_models[component] if former and same else None
    resolved = resolve_model(named.model, instance.context.sources, found.revision if found else None, named.field)
    return Pinned(named, resolved, check_model(named, resolved, [reward_model], inspection_of(instance.spec, found)))
