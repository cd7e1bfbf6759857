"""Downloads a version's parts: resumed where a connection broke, checked against their checksums."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from alignment_trainer.process.errors import describe
from alignment_trainer.weights.manifest import WeightManifest, WeightPart

log = logging.getLogger(__name__)

_TRIES = 5
_PAUSE_SECONDS = 0.5


class FetchFailed(RuntimeError):
    """A part could not be had from any of its sources."""


class VersionGone(FetchFailed):
    """The trainee keeps this version no longer."""


def fetch_parts(
    manifest: WeightManifest, origin: str, folder: Path, client: httpx.Client, stop: Callable[[], bool]
) -> list[Path]:
    """The manifest's parts as files of `folder`; those that are there already were checked by an earlier call.

    origin: the server that the manifest came from: http://host:port. Blocks. Raises FetchFailed, also where `stop`
    ended it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_fetch(_Download(part, folder), origin, client, stop) for part in manifest.parts]


def _fetch(download: _Download, origin: str, client: httpx.Client, stop: Callable[[], bool]) -> Path:
    sources = [origin + source for source in download.part.sources]
    failure = FetchFailed(f"{download.part.name}: asked to go")
    for number in range(_TRIES):
        if stop() or download.final.exists():
            break
        source = sources[number % len(sources)]
        try:
            download.go_on(client, source, stop)
        except (httpx.HTTPError, FetchFailed, OSError) as error:
            failure = (
                type(error)(str(error))
                if isinstance(error, VersionGone)
                else FetchFailed(f"{source}: {describe(error)}")
            )
            log.warning("part of weights not fetched: %s", failure)
            if isinstance(error, VersionGone) and len(sources) == 1:
                break
            time.sleep(_PAUSE_SECONDS)
    if not download.final.exists():
        raise failure
    return download.final


class _Download:
    """One part on its way; what has arrived is kept when a connection breaks. It gets its name once it is whole."""

    def __init__(self, part: WeightPart, folder: Path) -> None:
        self.part, self.final = part, folder / part.name
        self._partial = folder / f"{part.name}.partial"
        self._start_over()

    def _start_over(self) -> None:
        self._hash, self._done = hashlib.sha256(), 0
        self._partial.unlink(missing_ok=True)

    def go_on(self, client: httpx.Client, source: str, stop: Callable[[], bool]) -> None:
        """Fetches what is missing. Raises FetchFailed, VersionGone, or httpx's and the file system's errors."""
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={self._done}-"} if self._done else {})
        with client.stream("GET", source, headers=headers) as answer:
            if answer.status_code == httpx.codes.NOT_FOUND:
                raise VersionGone(f"{source}: 404")
            answer.raise_for_status()
            if self._done and answer.status_code != httpx.codes.PARTIAL_CONTENT:
                self._start_over()
            with self._partial.open("ab") as file:
                for chunk in answer.iter_bytes():
                    if stop():
                        raise FetchFailed("asked to go")
                    file.write(chunk)
                    self._hash.update(chunk)
                    self._done += len(chunk)
        self._finish()

    def _finish(self) -> None:
        found = self._hash.hexdigest()
        if self._done < self.part.bytes:
            raise FetchFailed(f"{self._done} of {self.part.bytes} bytes came")
        if found != self.part.sha256:
            self._start_over()
            raise FetchFailed(f"damaged: its SHA-256 is {found}, not {self.part.sha256}")
        self._partial.rename(self.final)
