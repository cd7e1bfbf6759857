"""The server of frozen models: prompt groups in, what the models say of them out. Reference and reward servers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError
from functools import partial
from typing import Protocol

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from alignment_api.contract.context import Outcome
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.process.errors import WireError
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_server import refuse
from alignment_trainer.serving.wire import GroupsRequest, decode_request

_PROBE = PromptGroup((0, 1), ((1, 0), (0,)))
LEAVING = "this server goes; ask another"
_MEDIA_TYPE = "application/octet-stream"


class Frozen(Protocol):
    """Models that are loaded. fingerprint: what they are known by. vocabulary: token ids are below it."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def vocabulary(self) -> int: ...

    def answer(self, asked: GroupsRequest) -> bytes:
        """The body of the answer. Safe to call from several threads."""

    def close(self) -> None:
        """Ends their threads."""


def serve(instance: Instance, path: str, load: Callable[[Instance], Frozen]) -> Outcome:
    """Serves `POST path` until it is asked to go; ready once the models have answered a probe."""
    if instance.server is None:
        raise RuntimeError("a server is one process with all its GPUs; it has no other ranks")
    service = FrozenService(instance.metrics, instance.spec.training.max_length)
    instance.server.add_route(path, service.answer)
    instance.board.update(state="loading the model")
    models = load(instance)
    try:
        instance.board.update(state="probing the model")
        models.answer(GroupsRequest(models.fingerprint, (_PROBE,)))
        service.open(models)
        instance.board.update(state="serving", ready=True)
        while not instance.stop():
            instance.stop.sleep(60)
        instance.board.update(state="leaving", ready=False)
    finally:
        service.close()
        models.close()
    return Outcome(result="interrupted")


class FrozenService:
    """Answers requests; 503 until it is opened with models and after it was closed.

    A request that is being computed then gets a 503 as soon as the micro-batch at hand is done: another server has the
    whole of it sooner than this one, which goes, its rest.
    """

    def __init__(self, metrics: Metrics, max_length: int) -> None:
        self._metrics, self._max_length = metrics, max_length
        self._models: Frozen | None = None
        self._leaves = False

    def open(self, models: Frozen) -> None:
        self._models = models

    def close(self) -> None:
        self._models, self._leaves = None, True

    async def answer(self, request: Request) -> Response:
        """One request. A request that names no model takes the one that is here."""
        models = self._models
        if models is None:
            return refuse(503, LEAVING if self._leaves else "the model is not ready; try again in a few seconds")
        asked = await run_in_threadpool(self._decode, await request.body(), models.vocabulary)
        if asked.fingerprint not in ("", models.fingerprint):
            return refuse(409, f"this server has model {models.fingerprint}, not `{asked.fingerprint}`; ask another")
        try:
            with self._metrics.working():
                answer = await run_in_threadpool(partial(models.answer, asked))
        except (CancelledError, RuntimeError):
            if not self._leaves:
                raise
            return refuse(503, LEAVING)  # its threads are gone
        self._metrics.add_tokens(sum(group.completion_tokens for group in asked.groups))
        return Response(answer, media_type=_MEDIA_TYPE)

    def _decode(self, body: bytes, vocabulary: int) -> GroupsRequest:
        """Raises WireError."""
        asked = decode_request(body, vocabulary)
        for number, group in enumerate(asked.groups, start=1):
            length = len(group.prompt) + max(map(len, group.completions))
            if length > self._max_length:
                raise WireError(f"row {number} has {length} tokens, more than {self._max_length} (training.maxLength)")
        return asked
