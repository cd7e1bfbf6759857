"""The critic as the loop sees it: in this process, behind HTTP, or not there. The loop cannot tell."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import httpx
import torch
from torch import Tensor

from alignment_trainer.checkpoint.attempt import Start
from alignment_trainer.checkpoint.checkpoint import Part, Write, write_parts
from alignment_trainer.checkpoint.run_state import nothing_more
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.storage import Storage
from alignment_trainer.experience import critic_wire as wire
from alignment_trainer.experience.minibatches import UpdateKey
from alignment_trainer.experience.value_trainer import ValueBatch, ValueTrainer
from alignment_trainer.process import distributed
from alignment_trainer.process.errors import describe

log = logging.getLogger(__name__)

Groups = tuple[PromptGroup, ...]
_ALIVE_SECONDS = 1.0
"""Between two signs of life: a critic that is asked to go stays while its actor, busy with a step, may still save."""
_PASSING = (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.CONFLICT)
"""Not begun yet, or still that of a former attempt: another one will answer."""


class Critic(Protocol):
    """Every method is collective over the actor's ranks."""

    def begin(self, start: Start | None) -> int:
        """Takes up the critic's part of a checkpoint, or the model as it came. Returns its optimizer steps so far."""

    def values(self, groups: Groups) -> Tensor:
        """V(s_t) before each completion token, (tokens,)."""

    def start_update(self, key: UpdateKey, learning_rate: float, batch: ValueBatch) -> None:
        """Starts an optimizer step; `finish_update` waits for its end."""

    def finish_update(self) -> dict[str, float]:
        """Metrics of the update that was started last."""

    def snapshot(self, name: str) -> Write:
        """Takes a snapshot of the critic's part of the checkpoint of that name, to be written."""

    def close(self) -> None:
        """Lets go of what it holds."""


class NoCritic:
    """Of algorithms without one."""

    def begin(self, start: Start | None) -> int:
        return 0

    def values(self, groups: Groups) -> Tensor:
        return torch.zeros(sum(group.completion_tokens for group in groups))

    def start_update(self, key: UpdateKey, learning_rate: float, batch: ValueBatch) -> None:
        return None

    def finish_update(self) -> dict[str, float]:
        return {}

    def snapshot(self, name: str) -> Write:
        return nothing_more

    def close(self) -> None:
        return None


class LocalCritic:
    """In the actor's process. make: the trainer of the checkpoint in that folder, or of the model as it came."""

    def __init__(self, make: Callable[[Start | None], ValueTrainer]) -> None:
        self._make = make
        self._trainer: ValueTrainer | None = None
        self._metrics: dict[str, float] = {}

    def begin(self, start: Start | None) -> int:
        self._trainer = self._make(start)
        return self._trainer.steps

    def values(self, groups: Groups) -> Tensor:
        return self._begun().values(groups)

    def start_update(self, key: UpdateKey, learning_rate: float, batch: ValueBatch) -> None:
        self._metrics = self._begun().update(key, learning_rate, batch)

    def finish_update(self) -> dict[str, float]:
        return self._metrics

    def snapshot(self, name: str) -> Write:
        drafts = self._begun().drafts()
        return lambda place: write_parts(place, drafts)

    def close(self) -> None:
        self._trainer = None

    def _begun(self) -> ValueTrainer:
        if self._trainer is None:
            raise RuntimeError("the critic was asked before it had begun")
        return self._trainer


@dataclass(frozen=True)
class CriticAddress:
    """Where the critic is. deadline: seconds of one request, repeats included."""

    url: str
    token: str
    attempt: int
    deadline: float = 1800.0


class CriticLost(RuntimeError):
    """The critic did not answer within the deadline."""


class RemoteCritic:
    """Behind HTTP. Rank 0 asks; every rank gets the answer. Requests may be repeated: updates carry their key."""

    def __init__(self, address: CriticAddress) -> None:
        self._address = address
        self._asker = ThreadPoolExecutor(1, thread_name_prefix="critic")
        self._update: Future[bytes] | None = None
        self._http = httpx.Client(
            base_url=address.url,
            headers={"Authorization": f"Bearer {address.token}", wire.ATTEMPT_HEADER: str(address.attempt)},
            timeout=httpx.Timeout(address.deadline, connect=5.0),
            trust_env=False,
        )
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="critic-heartbeat", daemon=True)
        if distributed.rank() == 0:
            self._heart.start()

    def begin(self, start: Start | None) -> int:
        body = wire.encode_begin(start)
        return int(json.loads(self._on_first_rank(wire.BEGIN_PATH, lambda: body))["steps"])

    def values(self, groups: Groups) -> Tensor:
        tokens = sum(group.completion_tokens for group in groups)
        return wire.decode_values(self._on_first_rank(wire.VALUES_PATH, lambda: wire.encode_groups(groups)), tokens)

    def start_update(self, key: UpdateKey, learning_rate: float, batch: ValueBatch) -> None:
        if distributed.rank() == 0:
            body = wire.encode_update(key, learning_rate, batch)
            self._update = self._asker.submit(self._post, wire.UPDATE_PATH, body)

    def finish_update(self) -> dict[str, float]:
        update = self._update
        answer = distributed.ask_first_rank(lambda: update.result() if update is not None else b"")
        metrics: dict[str, float] = json.loads(answer)
        return metrics

    def snapshot(self, name: str) -> Write:
        """The critic writes it itself; its parts are rank 0's to add."""
        body = wire.encode_write(name)
        self._on_first_rank(wire.WRITE_PATH, lambda: body)
        return self._written if distributed.rank() == 0 else nothing_more

    def _written(self, _place: Storage) -> list[Part]:
        return [Part(**part) for part in json.loads(self._post(wire.WRITTEN_PATH, b""))["parts"]]

    def close(self) -> None:
        """Releases the critic too: asked to go, it need not wait for this actor to save."""
        self._closed.set()
        if distributed.rank() == 0:
            self._heart.join()
            with contextlib.suppress(httpx.HTTPError):
                self._http.post(wire.RELEASE_PATH, timeout=5.0)
        self._asker.shutdown(cancel_futures=True)
        self._http.close()

    def _beat(self) -> None:
        while not self._closed.wait(_ALIVE_SECONDS):
            with contextlib.suppress(httpx.HTTPError):
                self._http.post(wire.ALIVE_PATH, timeout=5.0)

    def _on_first_rank(self, path: str, body: Callable[[], bytes]) -> bytes:
        return distributed.ask_first_rank(lambda: self._post(path, body()))

    def _post(self, path: str, body: bytes) -> bytes:
        """Repeated until it is answered. Raises CriticLost, RuntimeError for what will never be answered."""
        end = time.monotonic() + self._address.deadline
        problem = ""
        while time.monotonic() < end:
            try:
                answer = self._http.post(path, content=body)
            except httpx.HTTPError as error:
                problem = describe(error)
            else:
                if answer.status_code == httpx.codes.OK:
                    return answer.content
                problem = f"{answer.status_code}: {answer.text[:500]}"
                if answer.status_code not in _PASSING:
                    raise RuntimeError(f"critic {self._address.url} refused {path}: {problem}")
            log.warning("critic %s does not answer %s: %s", self._address.url, path, problem)
            time.sleep(1.0)
        raise CriticLost(
            f"critic {self._address.url}: no answer to {path} of attempt {self._address.attempt} within "
            f"{self._address.deadline:g} s; the last: {problem}"
        )
