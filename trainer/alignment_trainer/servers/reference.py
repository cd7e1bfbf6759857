"""The reference server: the frozen model behind `POST /v1/logprobs`."""

from __future__ import annotations

import numpy as np

from alignment_api.context import Outcome
from alignment_trainer.data.store import read_manifest
from alignment_trainer.errors import UserError
from alignment_trainer.instance import Instance
from alignment_trainer.kinds import LANGUAGE
from alignment_trainer.local_scorer import LocalScorer
from alignment_trainer.pinned_model import model_fingerprint
from alignment_trainer.servers.scoring import serve
from alignment_trainer.servers.wire import LogprobsRequest, encode_answer
from alignment_trainer.sources import resolve_model

LOGPROBS_PATH = "/v1/logprobs"


def run(instance: Instance) -> Outcome:
    """Serves the job's model as it came."""
    return serve(instance, LOGPROBS_PATH, _load)


class ReferenceModel:
    """The model whose log-probs are asked for."""

    def __init__(self, scorer: LocalScorer, fingerprint: str) -> None:
        self._scorer, self.fingerprint, self.vocabulary = scorer, fingerprint, scorer.vocabulary

    def answer(self, asked: LogprobsRequest) -> bytes:
        """Log-probs (nats) of all completion tokens, flat."""
        parts = [part for batch in asked.batches for part in self._scorer.score(batch, asked.ranks)]
        return encode_answer(self.fingerprint, np.concatenate(parts))

    def close(self) -> None:
        """Ends its threads."""
        self._scorer.close()


def _load(instance: Instance) -> ReferenceModel:
    manifest = read_manifest(instance.storage)
    pinned = manifest.model.revision if manifest else None
    folder = resolve_model(instance.spec.model, instance.context.sources, pinned).path
    fingerprint = model_fingerprint(folder)
    if manifest and manifest.model.fingerprint != fingerprint:
        raise UserError(
            "ModelChanged", f"spec.model.source: {folder} is not the model that `prepare` pinned; restore it"
        )
    return ReferenceModel(LocalScorer(LANGUAGE, folder, instance.spec, instance.context.gpus), fingerprint)
