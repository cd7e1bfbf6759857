"""The reference server: the frozen model behind `POST /v1/logprobs`."""

from __future__ import annotations

import logging
from functools import partial

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from alignment_api.context import Outcome
from alignment_trainer.data.packing import PromptGroup
from alignment_trainer.data.store import read_manifest
from alignment_trainer.errors import UserError
from alignment_trainer.instance import Instance
from alignment_trainer.kinds import LANGUAGE
from alignment_trainer.local_scorer import LocalScorer
from alignment_trainer.metrics import Metrics
from alignment_trainer.pinned_model import model_fingerprint
from alignment_trainer.servers.wire import LogprobsRequest, WireError, decode_request, encode_answer
from alignment_trainer.sources import resolve_model

log = logging.getLogger(__name__)

LOGPROBS_PATH = "/v1/logprobs"
MAX_BODY_BYTES = 256 * 2**20
_PROBE = PromptGroup((0, 1), ((1, 0), (0,)))
_MEDIA_TYPE = "application/octet-stream"


def run(instance: Instance) -> Outcome:
    """Serves until it is asked to go; ready once the model has answered a probe."""
    if instance.server is None:
        raise RuntimeError("a reference server is one process with all its GPUs; it has no other ranks")
    service = LogprobsService(instance.metrics, instance.spec.training.max_length)
    instance.server.add_route(LOGPROBS_PATH, service.answer)
    instance.board.update(state="loading the model")
    scorer, fingerprint = _load(instance)
    try:
        instance.board.update(state="probing the model")
        scorer.score([_PROBE])
        service.open(scorer, fingerprint)
        instance.board.update(state="serving", ready=True)
        while not instance.stop():
            instance.stop.sleep(60)
        instance.board.update(state="leaving", ready=False)
    finally:
        service.close()
        scorer.close()
    return Outcome(result="interrupted")


def _load(instance: Instance) -> tuple[LocalScorer, str]:
    manifest = read_manifest(instance.storage)
    pinned = manifest.model.revision if manifest else None
    folder = resolve_model(instance.spec.model, instance.context.sources, pinned).path
    fingerprint = model_fingerprint(folder)
    if manifest and manifest.model.fingerprint != fingerprint:
        raise UserError(
            "ModelChanged", f"spec.model.source: {folder} is not the model that `prepare` pinned; restore it"
        )
    return LocalScorer(LANGUAGE, folder, instance.spec, instance.context.gpus), fingerprint


class LogprobsService:
    """Answers requests for log-probs; 503 until it is opened with a model and after it was closed."""

    def __init__(self, metrics: Metrics, max_length: int) -> None:
        self._metrics, self._max_length = metrics, max_length
        self._scorer: LocalScorer | None = None
        self._fingerprint = ""

    def open(self, scorer: LocalScorer, fingerprint: str) -> None:
        self._scorer, self._fingerprint = scorer, fingerprint

    def close(self) -> None:
        self._scorer = None

    async def answer(self, request: Request) -> Response:
        """POST /v1/logprobs."""
        scorer = self._scorer
        if scorer is None:
            return _refuse(503, "the model is not ready; try again in a few seconds")
        body = await _read_body(request)
        if body is None:
            return _refuse(413, f"the body is larger than {MAX_BODY_BYTES} bytes; send fewer rows")
        try:
            asked = decode_request(body, scorer.vocabulary)
            self._check(asked)
        except WireError as error:
            return _refuse(400, str(error))
        if asked.fingerprint != self._fingerprint:
            return _refuse(409, f"this server has model {self._fingerprint}, not `{asked.fingerprint}`; ask another")
        logprobs = await run_in_threadpool(partial(_score, scorer, asked))
        self._metrics.add_tokens(len(logprobs))
        return Response(encode_answer(self._fingerprint, logprobs), media_type=_MEDIA_TYPE)

    def _check(self, asked: LogprobsRequest) -> None:
        for number, group in enumerate((g for batch in asked.batches for g in batch), start=1):
            length = len(group.prompt) + max(map(len, group.completions))
            if length > self._max_length:
                raise WireError(f"row {number} has {length} tokens, more than {self._max_length} (training.maxLength)")


def _score(scorer: LocalScorer, asked: LogprobsRequest) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.concatenate([part for batch in asked.batches for part in scorer.score(batch, asked.ranks)])


async def _read_body(request: Request) -> bytes | None:
    """The body; None as soon as it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


def _refuse(code: int, message: str) -> Response:
    return JSONResponse({"error": message}, code)
