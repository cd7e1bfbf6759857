"""Asks the trainee for its newest weights; every poll is this server's heartbeat, too."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import httpx
from pydantic import ValidationError

from alignment_trainer.process.errors import describe
from alignment_trainer.serving.peers import Peers
from alignment_trainer.weights.manifest import WEIGHTS_PATH, WeightManifest

log = logging.getLogger(__name__)

_ERROR_CHARACTERS = 500
Key = tuple[int, int]


@dataclass(frozen=True)
class WeightSource:
    """Where weights come from, and as whom this server asks for them.

    address: by which the trainee reaches it; None: the one that its polls come from, which a proxy may have made up.
    """

    trainee: Peers
    token: str
    name: str
    port: int
    address: str | None = None


@dataclass(frozen=True)
class Offer:
    """origin: the URL that the manifest came from."""

    manifest: WeightManifest
    origin: str


class WeightPoller:
    """Remembers the answer before, so that each offer comes once."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._last = ("", b"")

    async def poll(self, http: httpx.AsyncClient, key: Key, error: str | None) -> Offer | None:
        """What is new on offer. Of a gang the first pod alone answers; before it starts nobody does.

        key: attempt and version of the weights held. error: why newer ones were not taken.
        """
        source, (attempt, version) = self._source, key
        query: dict[str, str | int] = {"name": source.name, "port": source.port, "attempt": attempt, "version": version}
        if source.address is not None:
            query["address"] = source.address
        if error is not None:
            query["error"] = error[:_ERROR_CHARACTERS]
        for address in sorted(await source.trainee()):
            try:
                answer = await http.get(f"{address}{WEIGHTS_PATH}", params=query)
            except httpx.HTTPError:
                continue
            if answer.status_code == httpx.codes.OK:
                return self._offer(address, answer.content)
        return None

    def _offer(self, address: str, body: bytes) -> Offer | None:
        if (address, body) == self._last:
            return None
        try:
            manifest = WeightManifest.model_validate_json(body)
        except ValidationError as error:
            log.warning("not a manifest of weights: %s", describe(error), extra={"peer": address})
            return None
        self._last = address, body
        return Offer(manifest, address)
