"""What a model is trained to say, as data: what is made of its folder, and how rows are laid out for it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.micro_batch import recomputed_of
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.packing import Packing, pack, pack_whole
from alignment_trainer.model.load import LoadedModel, outline_model, outline_value_model


@dataclass(frozen=True)
class ModelTask:
    """outline: the model of a folder, with the spec's options. predictors: numbers that a group gets when packed."""

    outline: Callable[[Path, AlignmentJobSpec], LoadedModel]
    pack: Packing
    predictors: Callable[[PromptGroup], int]


def _each_token(group: PromptGroup) -> int:
    return sum(group.trained_lengths)


def _each_completion(group: PromptGroup) -> int:
    return len(group.completions)


def _language(folder: Path, spec: AlignmentJobSpec) -> LoadedModel:
    return outline_model(folder, recomputed_of(spec.training), spec.algorithm.sampling_temperature)


def _reward(folder: Path, spec: AlignmentJobSpec) -> LoadedModel:
    return outline_value_model(folder, recomputed_of(spec.training), spec.training.seed)


def _critic(folder: Path, spec: AlignmentJobSpec) -> LoadedModel:
    return outline_value_model(folder, recomputed_of(spec.training), zero_head=True)


LANGUAGE = ModelTask(_language, pack, _each_token)
"""Log-probs (nats) of the completion tokens that are trained on, at the temperature of sampling."""
REWARD = ModelTask(_reward, pack_whole, _each_completion)
"""A score of each completion, by the state of its last token. A new head is random by the job's seed."""
CRITIC = ModelTask(_critic, pack, _each_token)
"""The value V(s_t) of the state before each completion token. A new head is zero."""
