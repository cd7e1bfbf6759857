"""The rollout server's side: asks for the newest weights, fetches them while it samples, then swaps them in."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx
from pydantic import ValidationError

from alignment_trainer.process.metrics import Metrics
from alignment_trainer.serving.peers import Peers
from alignment_trainer.weights.check import WeightsRefused
from alignment_trainer.weights.fetch import FetchFailed, VersionGone, fetch_parts
from alignment_trainer.weights.manifest import WEIGHTS_PATH, WeightManifest

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
_TIMEOUT = httpx.Timeout(10.0, connect=3.0)
_FETCHES = 3
"""Failed fetches after which the trainee is told: before, it may be the network."""
_APPLIES = 3
_ERROR_CHARACTERS = 500
Key = tuple[int, int]


class WeightsNotApplied(RuntimeError):
    """Weights that could not be swapped in: the model is neither the old nor the new one, and must go."""


class Target(Protocol):
    """What samples. key: attempt and version of its weights."""

    key: Key

    async def pause(self) -> None: ...
    async def apply(self, key: Key, parts: list[Path]) -> None: ...
    async def resume(self) -> None: ...


@dataclass(frozen=True)
class WeightSource:
    """Where weights come from, and as whom this server asks for them."""

    trainee: Peers
    token: str
    name: str
    port: int


@dataclass(frozen=True)
class Offer:
    """origin: the URL that the manifest came from."""

    manifest: WeightManifest
    origin: str


@dataclass
class WeightFollower:
    """Keeps a target at the newest weights.

    check: raises WeightsRefused for a manifest of another model. scratch: where parts go. observe: told the weights
    held, and why newer ones were not taken, whenever that changes.
    """

    source: WeightSource
    target: Target
    check: Callable[[WeightManifest], None]
    scratch: Path
    metrics: Metrics
    observe: Callable[[Key, str | None], None]
    stop: Callable[[], bool]
    error: str | None = None
    _offer: Offer | None = None
    _refused: Key | None = None
    _failures: int = 0
    _last: tuple[str, bytes] = ("", b"")
    _offered: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """For ever. Raises WeightsNotApplied."""
        headers = {"Authorization": f"Bearer {self.source.token}"}
        polls = httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, trust_env=False)
        fetches = httpx.Client(headers=headers, timeout=_TIMEOUT, trust_env=False)
        with fetches:
            async with polls, asyncio.TaskGroup() as group:
                group.create_task(self._keep_polling(polls))
                group.create_task(self._keep_taking(fetches))

    async def _keep_polling(self, http: httpx.AsyncClient) -> None:
        """Goes on while weights are fetched and swapped: it is the heartbeat too."""
        while True:
            offer = await self._poll(http)
            if offer is not None and offer.manifest.key > self.target.key and offer.manifest.key != self._refused:
                self._offer = offer
                self._offered.set()
            await asyncio.sleep(POLL_SECONDS)

    async def _poll(self, http: httpx.AsyncClient) -> Offer | None:
        """What the trainee offers. Of a gang the first pod alone answers; before it starts nobody does."""
        (attempt, version), source = self.target.key, self.source
        asked: dict[str, str | int] = {"name": source.name, "port": source.port, "attempt": attempt, "version": version}
        if self.error is not None:
            asked["error"] = self.error[:_ERROR_CHARACTERS]
        for address in sorted(await source.trainee()):
            try:
                answer = await http.get(f"{address}{WEIGHTS_PATH}", params=asked)
            except httpx.HTTPError:
                continue
            if answer.status_code == httpx.codes.OK:
                return self._offer_of(address, answer.content)
        return None

    def _offer_of(self, address: str, body: bytes) -> Offer | None:
        if (address, body) == self._last:
            return None
        try:
            manifest = WeightManifest.model_validate_json(body)
        except ValidationError as error:
            log.warning("not a manifest of weights: %s", error, extra={"peer": address})
            return None
        self._last = address, body
        return Offer(manifest, address)

    async def _keep_taking(self, http: httpx.Client) -> None:
        while True:
            await self._offered.wait()
            self._offered.clear()
            if self._offer is not None and self._offer.manifest.key > self.target.key:
                await self._take(self._offer, http)

    async def _take(self, offer: Offer, http: httpx.Client) -> None:
        manifest = offer.manifest
        try:
            self.check(manifest)
            parts = await self._fetch(offer, http)
        except WeightsRefused as error:
            self._refused = manifest.key
            self._tell(str(error))
        except VersionGone:
            log.info("weights %s are gone already", manifest.name)
        except FetchFailed as error:
            self._failures += 1
            if self._failures >= _FETCHES:
                self._tell(f"weights {manifest.name}: {error}")
            self._offered.set()  # again: the newest that is on offer by then
        else:
            await self._swap(manifest, parts)
            self._failures = 0
            self._tell(None)
            self._remove_fetched()

    async def _fetch(self, offer: Offer, http: httpx.Client) -> list[Path]:
        folder = self.scratch / f"fetched-{offer.manifest.name}"
        with self.metrics.phase("fetch weights"):
            return await asyncio.to_thread(fetch_parts, offer.manifest, offer.origin, folder, http, self.stop)

    async def _swap(self, manifest: WeightManifest, parts: list[Path]) -> None:
        with self.metrics.phase("apply weights"):
            await self.target.pause()
            for left in reversed(range(_APPLIES)):
                try:
                    await self.target.apply(manifest.key, parts)
                    break
                except Exception as error:
                    log.warning("weights %s not applied, %d tries left", manifest.name, left, exc_info=error)
                    if not left:
                        message = f"weights {manifest.name} could not be applied: {error}"
                        raise WeightsNotApplied(message) from error
            await self.target.resume()

    def _tell(self, error: str | None) -> None:
        self.error = error
        self.observe(self.target.key, error)

    def _remove_fetched(self) -> None:
        """The model has them by now, and memory is dear."""
        for folder in self.scratch.glob("fetched-*"):
            shutil.rmtree(folder, ignore_errors=True)
