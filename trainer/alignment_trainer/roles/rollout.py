"""The rollout server: vLLM behind `POST /v1/completions`, at the newest weights of the trainee."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from alignment_api.contract.context import Outcome
from alignment_api.contract.quantity import quantity_value
from alignment_trainer.model.served_model import find_served_model
from alignment_trainer.process.errors import first_cause
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_server import refuse
from alignment_trainer.serving.frozen_server import LEAVING
from alignment_trainer.serving.peers import Peers, resolved
from alignment_trainer.vllm.engine import EngineOptions, RolloutEngine, WrongVersion
from alignment_trainer.vllm.wire import (
    COMPLETIONS_PATH,
    MAX_REQUEST_BYTES,
    CompletionsRequest,
    encode_completions,
    parse_request,
)
from alignment_trainer.weights.check import check_manifest, model_tensors
from alignment_trainer.weights.follower import WeightFollower
from alignment_trainer.weights.installer import WeightInstaller
from alignment_trainer.weights.poller import Key, WeightSource

log = logging.getLogger(__name__)

_TRAINEES = ("actor", "evaluator")
_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
_TICK = 0.1
T = TypeVar("T")


def run(instance: Instance) -> Outcome:
    """Serves until it is asked to go; ready once the base model, version 0, has answered a probe."""
    if instance.server is None:
        raise RuntimeError("a rollout server is one process with all its GPUs; it has no other ranks")
    service = CompletionsService(instance.metrics)
    instance.server.add_route(COMPLETIONS_PATH, service.answer, max_bytes=MAX_REQUEST_BYTES)
    instance.board.update(state="loading the model")
    folder, _ = find_served_model(instance)
    asyncio.run(_serve(instance, service, folder))
    return Outcome(result="interrupted")


async def _serve(instance: Instance, service: CompletionsService, folder: Path) -> None:
    engine = RolloutEngine(_options(instance, folder))
    follower = _follower(instance, engine, folder)
    following: asyncio.Task[None] | None = None
    try:
        instance.board.update(state="probing the model")
        await engine.probe()
        following = asyncio.create_task(follower.run())
        service.open(engine)
        follower.report()
        instance.board.update(ready=True)
        while not instance.stop() and not following.done() and not engine.has_died:  # noqa: ASYNC110 (a signal's flag)
            await asyncio.sleep(_TICK)
        instance.board.update(state="leaving", ready=False)
        if not instance.stop():
            raise engine.failure() if engine.has_died else _error_of(following)
    finally:
        await service.close()
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        engine.close()


def _error_of(following: asyncio.Task[None]) -> BaseException:
    """Why a task that goes on for ever ended; a group of tasks wraps it."""
    return first_cause(following.exception() or RuntimeError("the follower of weights ended"))


def _options(instance: Instance, folder: Path) -> EngineOptions:
    context, training, wanted = instance.context, instance.spec.training, instance.spec.roles.rollout.kv_cache_memory
    return EngineOptions(
        model=folder,
        precision=training.precision,
        max_length=training.max_length,
        gpus=context.gpus,
        kv_bytes=int(quantity_value(wanted)) // max(1, context.gpus) if wanted is not None else None,
        labels={"job": context.job, "role": context.role, "index": context.index, "life": context.life},
    )


def _follower(instance: Instance, engine: RolloutEngine, folder: Path) -> WeightFollower:
    context, server = instance.context, instance.server
    model = model_tensors(folder, _DTYPES[instance.spec.training.precision])

    def on_change(key: Key, error: str | None) -> None:
        instance.metrics.set("weight_version", key[1])
        refused = f"; newer ones are not taken: {error}" if error else ""
        instance.board.update(state=f"serving weights {key[1]} of attempt {key[0]}{refused}")

    source = WeightSource(
        trainee=_trainee(instance),
        token=instance.token,
        name=f"{context.role}-{context.index}",
        port=server.port if server is not None else context.port,
        address=instance.address,
    )
    installer = WeightInstaller(
        target=engine,
        check=lambda manifest: check_manifest(manifest, model),
        scratch=Path(context.scratch),
        metrics=instance.metrics,
        stop=instance.stop,
    )
    return WeightFollower(source, installer, on_change)


def _trainee(instance: Instance) -> Peers:
    return resolved([url for role in _TRAINEES for url in instance.context.peers.get(role, ())])


class CompletionsService:
    """Answers requests for completions, from the server's thread; 503 until it is opened and after it was closed.

    The engine lives in the event loop that opened it; a request that is still being sampled at the end gets a 503.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._engine: RolloutEngine | None = None
        self._leaves = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: set[Future[Any]] = set()

    def open(self, engine: RolloutEngine) -> None:
        """Serves with this engine. From its own event loop."""
        self._engine, self._loop = engine, asyncio.get_running_loop()

    async def close(self) -> None:
        """Ends what is being sampled."""
        self._engine, self._leaves = None, True
        for future in tuple(self._running):
            future.cancel()
        await asyncio.sleep(0)

    async def answer(self, request: Request) -> Response:
        """POST /v1/completions."""
        engine, body = self._engine, await request.body()
        if engine is None:
            return refuse(503, LEAVING if self._leaves else "the model is not ready; try again in a few seconds")
        asked = await run_in_threadpool(parse_request, body, engine.vocabulary, engine.max_length)
        try:
            with self._metrics.working():
                return await self._sample(engine, asked, request)
        except WrongVersion as error:
            oldest, newest = asked.versions
            message = f"this server has weights {error.version}, asked were {oldest} to {newest}; ask another, or wait"
            return JSONResponse({"error": message, "version": error.version}, 409)
        except (asyncio.CancelledError, CancelledError):
            return refuse(503, LEAVING)

    async def _sample(self, engine: RolloutEngine, asked: CompletionsRequest, request: Request) -> Response:
        version, completions = await self._on_engine(engine.sample(asked), request)
        self._metrics.add_tokens(sum(len(completion.tokens) for completion in completions))
        return Response(encode_completions(version, completions), media_type="application/json")

    async def _on_engine(self, work: Coroutine[Any, Any, T], request: Request) -> T:
        """Runs it in the engine's event loop, for as long as the client waits for it. Raises CancelledError."""
        assert self._loop is not None
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._running.add(future)
        gone = asyncio.create_task(_client_is_gone(request))
        try:
            result = asyncio.wrap_future(future)
            either: set[asyncio.Future[Any]] = {result, gone}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not result.done():
                result.cancel()
            return await result
        finally:
            gone.cancel()
            self._running.discard(future)


async def _client_is_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
