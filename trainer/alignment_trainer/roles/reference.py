"""The reference server: the frozen model behind `POST /v1/logprobs`."""

from __future__ import annotations

import numpy as np

from alignment_api.contract.context import Outcome
from alignment_trainer.model.copies import copies_of
from alignment_trainer.model.frozen_model import LocalScorer
from alignment_trainer.model.served_model import find_served_model
from alignment_trainer.model.tasks import LANGUAGE
from alignment_trainer.process.instance import Instance
from alignment_trainer.serving.frozen_server import serve
from alignment_trainer.serving.wire import LOGPROBS_PATH, GroupsRequest, encode_logprobs


def run(instance: Instance) -> Outcome:
    """Serves the job's model as it came."""
    return serve(instance, LOGPROBS_PATH, _load)


class ReferenceModel:
    """The model whose log-probs are asked for."""

    def __init__(self, scorer: LocalScorer, fingerprint: str) -> None:
        self._scorer, self.fingerprint, self.vocabulary = scorer, fingerprint, scorer.vocabulary

    def answer(self, asked: GroupsRequest) -> bytes:
        """Log-probs (nats) of all completion tokens, flat."""
        return encode_logprobs(self.fingerprint, np.concatenate(self._scorer.score(asked.groups)))

    def close(self) -> None:
        """Ends its threads."""
        self._scorer.close()


def _load(instance: Instance) -> ReferenceModel:
    folder, fingerprint = find_served_model(instance)
    copies = copies_of(instance, LANGUAGE, [folder])
    return ReferenceModel(LocalScorer(LANGUAGE, folder, instance.spec, copies), fingerprint)
