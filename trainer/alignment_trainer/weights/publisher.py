"""The trainee's side: writes each version of the weights to memory, serves it, and knows who has which.

Servers pull. The poll of the manifest is a server's registration and its heartbeat, so that one which comes late, or
comes back, needs nobody to notice it.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import shutil
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType

from safetensors.torch import save
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from torch import Tensor

from alignment_trainer.process.instance import Instance
from alignment_trainer.process.status_server import StatusServer
from alignment_trainer.serving.peers import base_url
from alignment_trainer.weights.manifest import WEIGHTS_PATH, WeightManifest, WeightPart

log = logging.getLogger(__name__)

PART_BYTES = 512 * 2**20
"""Of one part, where no tensor is larger: what is fetched again when one is damaged."""
HEARD_WITHIN = 10.0
"""Seconds after which a server that does not poll is forgotten; it polls about twice a second."""
MOST_SERVERS = 512
"""Remembered at once: twice as many as the role may have, for each may have been replaced just now."""
KEPT_VERSIONS = 2
"""A server that is still fetching the one before may end that."""


class ScratchFull(RuntimeError):
    """The folder in memory has no room for another version."""


@dataclass(frozen=True)
class RolloutServer:
    """A server as it last described itself. error: why it does not take the newest weights."""

    name: str
    url: str
    attempt: int
    version: int
    error: str | None
    silent_seconds: float = 0.0


@dataclass(frozen=True)
class _Published:
    manifest: WeightManifest
    folder: Path


class WeightPublisher:
    """Publishes one attempt's weights. A context manager; what it wrote goes with it.

    On ranks without a server it knows nobody and may not publish.
    """

    def __init__(self, instance: Instance) -> None:
        self.attempt = instance.context.life
        self._scratch, self._server = Path(instance.context.scratch), instance.server
        self._lock = threading.Lock()
        self._published: tuple[_Published, ...] = ()
        self._heard: dict[str, tuple[RolloutServer, float]] = {}
        self._metrics = instance.metrics
        self._awaited: set[str] = set()  # who was there when the newest weights came and has not reported them yet
        self._published_at = 0.0

    def __enter__(self) -> WeightPublisher:
        if self._server is not None:
            self._add_routes(self._server)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            former, self._published = self._published, ()
        for published in former:
            shutil.rmtree(published.folder, ignore_errors=True)

    def publish(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Makes these tensors, named as on the hub, the newest weights. Memory: two versions, and one part.

        Raises ValueError for a version that is not newer than the last, ScratchFull without room in memory.
        """
        if self._published and version <= (last := self._published[-1].manifest.version):
            raise ValueError(f"weights {version} come after {last}; a version never changes, so its number only grows")
        began = time.monotonic()
        self._forget(KEPT_VERSIONS - 1)
        folder = self._scratch / f"weights-{self.attempt}-{version}"
        manifest = WeightManifest(attempt=self.attempt, version=version, parts=(), tensors={})
        manifest = _write(folder, manifest, tensors)
        with self._lock:
            self._published = (*self._published, _Published(manifest, folder))
            self._awaited, self._published_at = set(self._heard), time.monotonic()
        size, seconds = sum(part.bytes for part in manifest.parts), round(time.monotonic() - began, 3)
        log.info("published weights %d", version, extra={"version": version, "bytes": size, "seconds": seconds})

    def servers(self) -> tuple[RolloutServer, ...]:
        """Those that polled within the last HEARD_WITHIN seconds, by name."""
        now = time.monotonic()
        with self._lock:
            self._forget_silent(now)
            heard = sorted(self._heard.items())
        return tuple(replace(server, silent_seconds=now - at) for _, (server, at) in heard)

    def _forget_silent(self, now: float) -> None:
        """Of those that polled. The lock is held."""
        self._heard = {name: one for name, one in self._heard.items() if now - one[1] <= HEARD_WITHIN}

    def _forget(self, keep: int) -> None:
        """Removes all but the newest `keep` versions; who still reads one of their files reads it to its end."""
        with self._lock:
            split = max(0, len(self._published) - keep)
            old, self._published = self._published[:split], self._published[split:]
        for published in old:
            shutil.rmtree(published.folder, ignore_errors=True)

    def _add_routes(self, server: StatusServer) -> None:
        server.add_route(WEIGHTS_PATH, self._answer_poll, method="GET")
        server.add_route(WEIGHTS_PATH + "/{version}/{part}", self._answer_part, method="GET")

    def _answer_poll(self, request: Request) -> Response:
        """The newest manifest; 204 while there is none."""
        try:
            server = _described(request)
        except (KeyError, ValueError) as error:
            advice = "send ?name=rollout-0&address=10.0.0.7&port=8000&attempt=0&version=0, error=... where it took none"
            return JSONResponse({"error": f"not a poll ({error!r}); {advice}"}, 400)
        with self._lock:
            if not self._remember(server):
                return JSONResponse({"error": f"{MOST_SERVERS} servers poll already; lower spec.roles.rollout"}, 503)
            newest = self._published[-1].manifest if self._published else None
            self._note_delivery(server, newest)
        if newest is None:
            return Response(status_code=204)
        return Response(newest.model_dump_json(), media_type="application/json")

    def _remember(self, server: RolloutServer) -> bool:
        """Whether there is room for this one. The lock is held."""
        now = time.monotonic()
        if server.name not in self._heard and len(self._heard) >= MOST_SERVERS:
            self._forget_silent(now)
            if len(self._heard) >= MOST_SERVERS:
                return False
        self._heard[server.name] = server, now
        return True

    def _note_delivery(self, server: RolloutServer, newest: WeightManifest | None) -> None:
        """What the gauge holds in the end is the time of the slowest; who came after the weights is not waited for."""
        if newest is None or (server.attempt, server.version) != (newest.attempt, newest.version):
            return
        if server.name in self._awaited:
            self._awaited.remove(server.name)
            self._metrics.set("delivery_seconds", time.monotonic() - self._published_at)

    def _answer_part(self, request: Request) -> Response:
        """A part, or the range of it that is asked for."""
        version, name = request.path_params["version"], request.path_params["part"]
        with self._lock:
            found = next((each for each in self._published if each.manifest.name == version), None)
            held = [each.manifest.name for each in self._published]
        if found is None or name not in {part.name for part in found.manifest.parts}:
            return JSONResponse({"error": f"no part {name} of weights {version}; ask for the manifest: {held}"}, 404)
        return FileResponse(found.folder / name, media_type="application/octet-stream")


def _described(request: Request) -> RolloutServer:
    """The server that polls, at the address that it says. Raises KeyError or ValueError."""
    asked = request.query_params
    return RolloutServer(
        name=asked["name"],
        url=base_url(_address(request), int(asked["port"])),
        attempt=int(asked["attempt"]),
        version=int(asked["version"]),
        error=asked.get("error") or None,
    )


def _address(request: Request) -> str:
    """Of a server that says none the one that it polls from: behind a mesh's proxy that is the proxy's."""
    told = request.query_params.get("address")
    if told is None:
        return request.client.host if request.client else "127.0.0.1"
    address = ip_address(told)
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{told} is no server's address")
    return str(address)


def _write(folder: Path, manifest: WeightManifest, tensors: Iterable[tuple[str, Tensor]]) -> WeightManifest:
    """Writes the parts beside `folder`, which then appears whole; the manifest with them."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    parts: list[WeightPart] = []
    described: dict[str, tuple[str, tuple[int, ...]]] = {}
    try:
        for number, group in enumerate(_parts(tensors)):
            name = f"part-{number:05d}.safetensors"
            body = save(group)
            (temporary / name).write_bytes(body)
            source = f"{WEIGHTS_PATH}/{manifest.name}/{name}"
            checksum = hashlib.sha256(body).hexdigest()
            parts.append(WeightPart(name=name, bytes=len(body), sha256=checksum, sources=(source,)))
            described |= {key: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for key, t in group.items()}
        temporary.rename(folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        size = f"{sum(part.bytes for part in parts)} bytes of weights {manifest.name}"
        message = f"{folder.parent} is full after {size}; it holds two versions: raise `memory` of the trainee's role"
        raise ScratchFull(message) from error
    return manifest.model_copy(update={"parts": tuple(parts), "tensors": described})


def _parts(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Consecutive tensors in parts of at most PART_BYTES, one tensor at least."""
    group: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        held = tensor.detach().contiguous().cpu()
        if group and size + held.nbytes > PART_BYTES:
            yield group
            group, size = {}, 0
        group[name] = held
        size += held.nbytes
    if group:
        yield group
