"""The reward server: every reward model of the job behind `POST /v1/scores`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignment_api.contract.context import Outcome
from alignment_trainer.data.pins import pins_of
from alignment_trainer.data.sources import Resolved, resolve_model
from alignment_trainer.model.copies import copies_of
from alignment_trainer.model.frozen_model import LocalScorer
from alignment_trainer.model.inspect import check_model, check_same_tokenizer, load_tokenizer, reward_model
from alignment_trainer.model.tasks import REWARD
from alignment_trainer.process.instance import Instance
from alignment_trainer.rewards.models import RewardModel, find_reward_models, fingerprint_of_models
from alignment_trainer.serving.frozen_server import serve
from alignment_trainer.serving.wire import SCORES_PATH, GroupsRequest, encode_scores


def run(instance: Instance) -> Outcome:
    """Serves what stage `reward` made and what the spec names."""
    return serve(instance, SCORES_PATH, _load)


class RewardModels:
    """Reward models in the order of the spec, each on all devices."""

    def __init__(self, models: Sequence[RewardModel], scorers: Sequence[LocalScorer]) -> None:
        self._components = [model.component for model in models]
        self._scorers = scorers
        self.fingerprint = fingerprint_of_models(models)
        self.vocabulary = min(scorer.vocabulary for scorer in scorers)

    def answer(self, asked: GroupsRequest) -> bytes:
        """Scores, (models, completions)."""
        scores = [np.concatenate(scorer.score(asked.groups)) for scorer in self._scorers]
        return encode_scores(self.fingerprint, self._components, np.stack(scores))

    def close(self) -> None:
        """Ends their threads."""
        for scorer in self._scorers:
            scorer.close()


def _load(instance: Instance) -> RewardModels:
    models, spec = find_reward_models(instance), instance.spec
    _check(instance, models)
    copies = copies_of(instance, REWARD, [model.folder for model in models])
    return RewardModels(models, [LocalScorer(REWARD, model.folder, spec, copies) for model in models])


def _check(instance: Instance, models: Sequence[RewardModel]) -> None:
    """`prepare` has looked already, but not at what stage `reward` made. Raises UserError."""
    pins = pins_of(instance)
    pinned = pins.model.revision if pins else None
    policy = resolve_model(instance.spec.model, instance.context.sources, pinned).path
    ours = load_tokenizer(instance.spec.model.source, policy)
    for model in models:
        check_model(model.named, Resolved(model.folder), [reward_model])
        theirs = load_tokenizer(model.named.model.source, model.folder, model.named.field)
        check_same_tokenizer(model.named, theirs, ours)
