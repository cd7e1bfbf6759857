"""The rollout server's side: polls for the newest weights, and installs them while it goes on polling."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import httpx

from alignment_trainer.weights.check import WeightsRefused
from alignment_trainer.weights.fetch import FetchFailed, VersionGone
from alignment_trainer.weights.installer import WeightInstaller
from alignment_trainer.weights.poller import Key, Offer, WeightPoller, WeightSource

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
_TIMEOUT = httpx.Timeout(10.0, connect=3.0)
_FETCHES = 3
"""Failed fetches after which the trainee is told: before, it may be the network."""


class WeightFollower:
    """Keeps the installer's target at the newest weights.

    on_change: called with the weights held, and why newer ones were not taken, whenever that changes.
    """

    def __init__(
        self, source: WeightSource, installer: WeightInstaller, on_change: Callable[[Key, str | None], None]
    ) -> None:
        self.error: str | None = None
        self._source, self._installer, self._on_change = source, installer, on_change
        self._newest = _NewestOffer()
        self._failures = 0

    async def run(self) -> None:
        """For ever. Raises WeightsNotApplied."""
        headers = {"Authorization": f"Bearer {self._source.token}"}
        polls = httpx.AsyncClient(headers=headers, timeout=_TIMEOUT, trust_env=False)
        fetches = httpx.Client(headers=headers, timeout=_TIMEOUT, trust_env=False)
        with fetches:
            async with polls, asyncio.TaskGroup() as group:
                group.create_task(self._keep_polling(polls))
                group.create_task(self._keep_installing(fetches))

    @property
    def key(self) -> Key:
        """Attempt and version of the weights held."""
        return self._installer.target.key

    def report(self) -> None:
        """Says what is held, before anything newer was seen, too."""
        self._on_change(self.key, self.error)

    async def _keep_polling(self, http: httpx.AsyncClient) -> None:
        """Goes on while weights are fetched and swapped: it is the heartbeat too."""
        poller = WeightPoller(self._source)
        while True:
            offer = await poller.poll(http, self.key, self.error)
            if offer is not None and offer.manifest.key > self.key:
                self._newest.put(offer)
            await asyncio.sleep(POLL_SECONDS)

    async def _keep_installing(self, http: httpx.Client) -> None:
        while True:
            offer = await self._newest.get()
            if offer.manifest.key > self.key:
                await self._install(offer, http)

    async def _install(self, offer: Offer, http: httpx.Client) -> None:
        name = offer.manifest.name
        try:
            await self._installer.install(offer, http)
        except WeightsRefused as error:
            self._newest.refuse(offer)
            self._set_error(str(error))
        except VersionGone:
            log.info("weights %s are gone already", name)
        except FetchFailed as error:
            self._failures += 1
            if self._failures >= _FETCHES:
                self._set_error(f"weights {name}: {error}")
            self._newest.again()
        else:
            self._failures = 0
            self._set_error(None)

    def _set_error(self, error: str | None) -> None:
        self.error = error
        self.report()


class _NewestOffer:
    """Hands the polling task's newest offer to the installing one. What was refused is not offered again."""

    def __init__(self) -> None:
        self._offer: Offer | None = None
        self._refused: Key | None = None
        self._there = asyncio.Event()

    def put(self, offer: Offer) -> None:
        if offer.manifest.key != self._refused:
            self._offer = offer
            self._there.set()

    async def get(self) -> Offer:
        """Waits for one."""
        await self._there.wait()
        self._there.clear()
        assert self._offer is not None
        return self._offer

    def again(self) -> None:
        """It is to be tried once more, or what is newer by then."""
        self._there.set()

    def refuse(self, offer: Offer) -> None:
        """It belongs to another model."""
        self._refused = offer.manifest.key
