"""The reward models of a PPO or GRPO job: where they are, and what they are known by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment_api.contract.context import Pins
from alignment_api.contract.inputs import Model
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.reward_stage import training_field
from alignment_trainer.data.pins import pins_of
from alignment_trainer.data.prepared import digest
from alignment_trainer.data.sources import resolve_model
from alignment_trainer.model.inspect import Named, model_fingerprint
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.instance import EXPORT_FOLDER, Instance


@dataclass(frozen=True)
class RewardModel:
    """component: the reward's name in metrics. folder: a Hugging Face sequence classifier of one label."""

    component: str
    named: Named
    folder: Path
    fingerprint: str


def named_models(spec: AlignmentJobSpec) -> Iterator[tuple[str, Named]]:
    """The reward models that exist before the job, by the reward's name."""
    for index, reward in enumerate(spec.algorithm.rewards):
        if reward.model is not None:
            yield reward.component, Named(reward.model, f"spec.algorithm.{spec.algorithm.name}.rewards[{index}].model")


def find_reward_models(instance: Instance) -> list[RewardModel]:
    """Every reward model of the job, in the order of the spec, as `prepare` pinned it and stage `reward` made it.

    Raises UserError where one is not what was pinned, FileNotFoundError where stage `reward` has not made its own.
    """
    pins, given = pins_of(instance), dict(named_models(instance.spec))
    if pins is None:
        raise FileNotFoundError(f"{instance.context.storage}: stage `prepare` has not finished here")
    found = []
    for reward in instance.spec.algorithm.rewards:
        if reward.train is not None:
            found.append(_trained(instance, reward.component))
        elif reward.model is not None:
            found.append(_pinned(instance, pins, reward.component, given[reward.component]))
    return found


def fingerprint_of_models(models: Sequence[RewardModel]) -> str:
    """What requests for scores name: that a server has these models, in this order."""
    return digest([(model.component, model.fingerprint) for model in models])


def _trained(instance: Instance, component: str) -> RewardModel:
    folder = Path(instance.at_stage("reward").output) / EXPORT_FOLDER
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no reward model; stage `reward` has not finished here")
    named = Named(Model(source=f"file://{folder}"), training_field(instance.spec))
    return RewardModel(component, named, folder, model_fingerprint(folder))


def _pinned(instance: Instance, pins: Pins, component: str, named: Named) -> RewardModel:
    pinned = pins.reward_models[component]
    folder = resolve_model(named.model, instance.context.sources, pinned.revision, named.field).path
    fingerprint = model_fingerprint(folder)
    if fingerprint != pinned.fingerprint:
        raise UserError(
            "ModelChanged", f"{named.field}.source: {folder} is not the model that `prepare` pinned; restore it"
        )
    return RewardModel(component, named, folder, fingerprint)
