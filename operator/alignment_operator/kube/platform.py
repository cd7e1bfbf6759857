"""The platform's configuration: read at the start, looked at again every few seconds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from alignment_api.contract.platform import Platform
from alignment_api.yaml.manifest import InvalidManifest, read_contract
from alignment_operator.kube.client import UNAVAILABLE, KubeClient
from alignment_operator.kube.paths import named
from alignment_operator.kube.telemetry import Telemetry

SCHEME = "configmap://"
KEY = "platform.yaml"
EVERY_SECONDS = 10.0

log = logging.getLogger(__name__)


class UnusablePlatform(Exception):
    """The platform's configuration is not where it should be."""


UNREADABLE = (UnusablePlatform, InvalidManifest, OSError, *UNAVAILABLE)
"""What reading the platform may end in."""


class PlatformSource:
    """`origin` is a file (a mounted ConfigMap) or configmap://namespace/name, read through the API."""

    def __init__(self, origin: str, client: KubeClient, telemetry: Telemetry) -> None:
        self._origin = origin
        self._client = client
        self._telemetry = telemetry
        self._text = ""
        self.current = Platform()

    async def load(self) -> None:
        """The first read. Raises one of UNREADABLE: there is nothing to fall back to."""
        self._text = await self._read()
        self.current = read_contract(Platform, self._text, self._origin)

    async def run(self, changed: Callable[[], None]) -> None:
        """Follow changes until cancelled. A change with mistakes is refused, and the last good one stays."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                text = await self._read()
                if text == self._text:
                    continue
                self._text = text
                self.current = read_contract(Platform, text, self._origin)
            except UNREADABLE as error:
                self._telemetry.platform_errors.inc()
                log.error("platform not read again, the last one stays", extra={"error": str(error)})
            else:
                log.info("platform changed", extra={"origin": self._origin})
                changed()

    async def _read(self) -> str:
        if not self._origin.startswith(SCHEME):
            try:
                return await asyncio.to_thread(Path(self._origin).read_text, "utf-8")
            except UnicodeDecodeError as error:
                raise UnusablePlatform(f"{self._origin}: is not UTF-8 ({error}); save it as UTF-8") from None
        namespace, _, name = self._origin.removeprefix(SCHEME).partition("/")
        if not namespace or not name:
            raise UnusablePlatform(f"{self._origin}: names no ConfigMap; write {SCHEME}namespace/name")
        config = await self._client.get(named("ConfigMap", namespace, name))
        data = config.get("data") or {}
        if KEY not in data:
            found = ", ".join(sorted(data)) or "nothing"
            raise UnusablePlatform(f"{self._origin}: has no key `{KEY}`, but {found}; write the platform under it")
        return str(data[KEY])
