"""Brings a version of the weights into what samples: checked, fetched while it samples, then swapped in a pause."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx

from alignment_trainer.process.errors import describe
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.weights.fetch import fetch_parts
from alignment_trainer.weights.manifest import WeightManifest
from alignment_trainer.weights.poller import Key, Offer

log = logging.getLogger(__name__)

_APPLIES = 3


class WeightsNotApplied(RuntimeError):
    """Weights that could not be swapped in: the model is neither the old nor the new one, and must go."""


class Target(Protocol):
    """What samples. key: attempt and version of its weights."""

    key: Key

    async def pause(self) -> None: ...
    async def apply(self, key: Key, parts: list[Path]) -> None: ...
    async def resume(self) -> None: ...


@dataclass(frozen=True)
class WeightInstaller:
    """check: raises WeightsRefused for a manifest of another model. scratch: where parts go.

    stop: whether this process shall go.
    """

    target: Target
    check: Callable[[WeightManifest], None]
    scratch: Path
    metrics: Metrics
    stop: Callable[[], bool]

    async def install(self, offer: Offer, http: httpx.Client) -> None:
        """Raises WeightsRefused, VersionGone and FetchFailed, which leave the target as it was, and WeightsNotApplied.

        What was fetched goes once the model has it: memory is dear.
        """
        self.check(offer.manifest)
        await self._swap(offer.manifest, await self._fetch(offer, http))
        for folder in self.scratch.glob("fetched-*"):
            shutil.rmtree(folder, ignore_errors=True)

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
                        message = f"weights {manifest.name} could not be applied: {describe(error)}"
                        raise WeightsNotApplied(message) from error
            await self.target.resume()
