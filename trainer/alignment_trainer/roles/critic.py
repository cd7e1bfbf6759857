"""The role `critic`: the value model behind HTTP, for the actor of its own gang alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from alignment_api.contract.context import Outcome
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.micro_batch import tokens_of
from alignment_trainer.checkpoint.attempt import Start
from alignment_trainer.checkpoint.background import Background
from alignment_trainer.checkpoint.checkpoint import Part, write_parts
from alignment_trainer.data.drafts import Draft
from alignment_trainer.data.pins import pins_of
from alignment_trainer.data.sources import resolve_model
from alignment_trainer.data.storage import Storage, storage_at, storage_of
from alignment_trainer.engines.state import holds_state
from alignment_trainer.experience import critic_wire as wire
from alignment_trainer.experience.critic_start import CriticStart, critic_start
from alignment_trainer.experience.value_trainer import PREFIX, ValueOptions, ValueTrainer
from alignment_trainer.loop.build import Origin, load_trainee
from alignment_trainer.model.config import read_config
from alignment_trainer.model.tasks import CRITIC
from alignment_trainer.process import distributed
from alignment_trainer.process.errors import WireError, describe
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.metrics import finite_ones
from alignment_trainer.process.status_server import refuse

log = logging.getLogger(__name__)

_TICK = 0.2
_PATIENCE_SECONDS = 10.0
"""Without a sign of life, after which one that is asked to go takes its actor for gone; a living one gives one every
second."""


@dataclass(frozen=True)
class CriticCall:
    """What the actor wants, as every rank of the critic hears it."""

    path: str
    body: bytes = b""


@dataclass
class CriticInbox:
    """Where the HTTP server leaves calls for the ranks, and finds their answers. On rank 0."""

    attempt: int
    patience: float
    """Seconds without a sign of life after which one that is asked to go takes its actor for gone."""
    writing: Background[list[Part]] = field(default_factory=Background)
    """The critic's part of a checkpoint, on its way to storage."""
    calls: queue.SimpleQueue[tuple[CriticCall, Future[bytes]]] = field(default_factory=queue.SimpleQueue)
    released: bool = False
    """The actor needs it no more."""
    last_sign: float = -math.inf
    """When the actor was heard last. One that never was needs nothing saved."""
    gone: bool = False
    _asker: Future[bytes] | None = None
    """Waits for the answer to the call that `next` gave last."""

    def handler(self, path: str) -> Callable[[Request], Any]:
        """Takes the requests of a path."""

        async def answer(request: Request) -> Response:
            if (found := request.headers.get(wire.ATTEMPT_HEADER, "none")) != str(self.attempt):
                return refuse(409, f"this critic is of attempt {self.attempt}, not {found[:20]}")
            if self.gone:
                return refuse(503, "this critic goes; its next attempt will answer")
            self.last_sign = time.monotonic()
            if path in (wire.ALIVE_PATH, wire.RELEASE_PATH):
                self.released = path == wire.RELEASE_PATH
                return Response()
            if path == wire.WRITTEN_PATH:
                return await self._written()
            done: Future[bytes] = Future()
            self.calls.put((CriticCall(path, await request.body()), done))
            return Response(await asyncio.wrap_future(done), media_type="application/octet-stream")

        return answer

    async def _written(self) -> Response:
        """The parts of what was written last, once it is."""
        if self.writing.work is None:
            return refuse(400, "nothing was asked to be written")
        try:
            parts = await asyncio.shield(asyncio.wrap_future(self.writing.work))
        except Exception as error:
            log.warning("what was asked to be written is not: %s", describe(error))
            return refuse(503, "this critic goes: it could not write")
        return JSONResponse({"parts": [asdict(part) for part in parts]})

    def next(self, asked_to_go: Callable[[], bool]) -> CriticCall | None:
        """The next call; None where it is time to go. Raises what kept a checkpoint's part from being written."""
        while not self.may_go(asked_to_go):
            self.writing.raise_failure()
            with contextlib.suppress(queue.Empty):
                call, asker = self.calls.get(timeout=_TICK)
                if asker.set_running_or_notify_cancel():  # from here on its client cannot take it back
                    self._asker = asker
                    return call
        return None

    def answer(self, found: bytes | WireError) -> None:
        """Answers that call, where this process was asked: the other ranks have nobody to tell."""
        if self._asker is None:
            return
        if isinstance(found, WireError):
            self._asker.set_exception(found)
        else:
            self._asker.set_result(found)

    def may_go(self, asked_to_go: Callable[[], bool]) -> bool:
        """Asked to go, and the actor, which may have been asked as well, has saved or is gone."""
        return asked_to_go() and (self.released or time.monotonic() - self.last_sign > self.patience)


class CriticService:
    """Carries out calls, the same on every rank."""

    def __init__(self, instance: Instance, device: torch.device, writing: Background[list[Part]]) -> None:
        self._instance, self._device, self._writing = instance, device, writing
        self._trainer: ValueTrainer | None = None
        self._vocabulary = 0
        self._actions: dict[str, Callable[[bytes], bytes]] = {
            wire.BEGIN_PATH: self._begin,
            wire.VALUES_PATH: self._values,
            wire.UPDATE_PATH: self._update,
            wire.WRITE_PATH: self._write,
        }

    def carry_out(self, call: CriticCall) -> bytes:
        """The answer's body. Raises WireError for a body that is not what it should be."""
        with self._instance.metrics.working():
            return self._actions[call.path](call.body)

    def _begin(self, body: bytes) -> bytes:
        instance, sources = self._instance, self._instance.context.sources
        other = instance.spec.checkpoint.resume_from
        inherited = storage_at(sources[other], "spec.checkpoint.resumeFrom") if other is not None else None
        start = wire.decode_begin(body, storage_of(instance), inherited)
        instance.board.update(state="loading the model")
        pins = pins_of(instance)
        model = resolve_model(instance.spec.model, sources, pins.model.revision if pins else None).path
        origin = critic_start(instance, model)
        self._vocabulary = int(read_config(origin.folder)[0].vocab_size)
        self._trainer = make_value_trainer(instance.spec, origin, start, self._device)
        instance.board.update(state=f"serving the actor from {start.folder if start else origin.folder}")
        return json.dumps({"steps": self._trainer.steps}).encode()

    def _values(self, body: bytes) -> bytes:
        trainer = self._begun()
        return wire.encode_values(trainer.values(wire.decode_groups(body, self._vocabulary)))

    def _update(self, body: bytes) -> bytes:
        trainer = self._begun()
        key, learning_rate, batch = wire.decode_update(body, self._vocabulary)
        metrics = trainer.update(key, learning_rate, batch)
        if distributed.rank() == 0:
            finite = finite_ones(metrics)
            self._instance.metrics.set("step", key.step + 1)
            if "value_loss" in finite:
                self._instance.metrics.set("value_loss", finite["value_loss"])
            self._instance.metrics.add_tokens(len(batch.values))
            self._instance.board.update(state=f"updating, step {key.step + 1}", metrics=finite)
        return json.dumps(metrics).encode()

    def _write(self, body: bytes) -> bytes:
        """Answers once the snapshot is taken. A repeat writes the same once more."""
        trainer, place = self._begun(), wire.decode_write(body, storage_of(self._instance))
        self._writing.result()
        drafts = trainer.drafts()
        self._writing.start(lambda: self._write_parts(place, drafts))
        return b""

    def _write_parts(self, place: Storage, drafts: list[Draft]) -> list[Part]:
        """Every rank's."""
        written = self._writing.together(lambda: write_parts(place, drafts))
        return [part for parts in written for part in parts]

    def _begun(self) -> ValueTrainer:
        if self._trainer is None:
            raise WireError("this critic has not begun; send what it shall start from first")
        return self._trainer


def run(instance: Instance) -> Outcome:
    """Serves the actor until it is asked to go. It claims nothing: the actor's claim says where both start."""
    device = distributed.local_device(instance.context.gpus)
    with distributed.process_group(device):
        inbox = CriticInbox(instance.context.life, min(_PATIENCE_SECONDS, instance.context.notice_seconds / 4))
        if instance.server is not None:
            for path in wire.PATHS:
                instance.server.add_route(path, inbox.handler(path))
        instance.board.update(state="waiting for the actor", ready=True)
        with closing(inbox.writing):
            _serve(inbox, CriticService(instance, device, inbox.writing), instance.stop)
        inbox.gone = True
        instance.board.update(state="leaving", ready=False)
    return Outcome(result="interrupted")


def _serve(inbox: CriticInbox, service: CriticService, asked_to_go: Callable[[], bool]) -> None:
    """Rank 0 takes calls, all ranks carry them out."""
    while (call := distributed.ask_first_rank(lambda: inbox.next(asked_to_go))) is not None:
        inbox.answer(_carry_out(service, call))


def _carry_out(service: CriticService, call: CriticCall) -> bytes | WireError:
    """A body that is wrong is the asker's to hear; anything else ends this process."""
    try:
        return service.carry_out(call)
    except WireError as error:
        return error


def make_value_trainer(
    spec: AlignmentJobSpec, origin: CriticStart, start: Start | None, device: torch.device
) -> ValueTrainer:
    """The critic's engine, as `start` left it, or at its beginning; collective.

    Another job's checkpoint may have no critic (that of DPO or GRPO); then the critic starts as if there were none.
    """
    options = spec.algorithm.ppo
    if options is None:
        raise ValueError(f"algorithm {spec.algorithm.name} has no critic")
    if start is not None and not start.resumes and not holds_state(start.folder, PREFIX):
        start = None
    critic = load_trainee(spec, Origin(origin.folder, CRITIC, PREFIX), start, device)
    value_options = ValueOptions(tokens_of(spec.training), options.critic.value_clip, origin.unit)
    trainer = ValueTrainer(critic.engine, value_options)
    if start is not None:
        trainer.restore_unit(start.folder)
    return trainer
