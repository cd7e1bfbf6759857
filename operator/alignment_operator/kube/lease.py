"""One operator at a time: a Lease of coordination.k8s.io, as client-go does it.

Another's lease counts as expired when it has not changed for its duration by our own clock, so that clocks need not
agree. Exits are counted once even without it (records carry preconditions); the lease keeps two operators from working
against each other's conflicts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime

from alignment_operator.kube.client import UNAVAILABLE, ApiError, KubeClient, Manifest
from alignment_operator.kube.paths import collection, named

DURATION_SECONDS = 15
RENEW_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 2.0

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Somebody else may be acting now; this process must end."""


@dataclass(frozen=True)
class _Sighting:
    """The lease of another as first seen with this version."""

    version: str
    at: float


class Lease:
    """`acquire`, then `keep` beside the work, then `release`."""

    def __init__(self, client: KubeClient, namespace: str, name: str, identity: str) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._sighting: _Sighting | None = None

    async def acquire(self) -> None:
        """Wait until the lease is ours."""
        while True:
            try:
                if await self._try_once():
                    log.info("lease acquired", extra={"identity": self._identity})
                    return
            except UNAVAILABLE as error:
                log.warning("lease not read", extra={"error": str(error)})
            await asyncio.sleep(RETRY_SECONDS)

    async def keep(self) -> None:
        """Renew until cancelled. Raises LeaseLost where that fails for longer than the deadline."""
        while True:
            await asyncio.sleep(RETRY_SECONDS)
            try:
                async with asyncio.timeout(RENEW_DEADLINE_SECONDS):
                    await self._renew()
            except TimeoutError:
                raise LeaseLost(f"not renewed for {RENEW_DEADLINE_SECONDS:g} s") from None

    async def release(self) -> None:
        """Let the next one in at once instead of after the duration."""
        try:
            lease = await self._client.get(self._path)
            if lease["spec"].get("holderIdentity") == self._identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._client.replace(self._path, lease)
        except UNAVAILABLE as error:
            log.warning("lease not released, it expires by itself", extra={"error": str(error)})

    @property
    def _path(self) -> str:
        return named("Lease", self._namespace, self._name)

    async def _renew(self) -> None:
        while True:
            try:
                if await self._try_once():
                    return
                raise LeaseLost("another holds it")
            except UNAVAILABLE as error:
                log.warning("lease not renewed yet", extra={"error": str(error)})
            await asyncio.sleep(RETRY_SECONDS / 4)

    async def _try_once(self) -> bool:
        """Create, take over or renew; False where another holds it, or was faster."""
        try:
            lease = await self._client.get(self._path)
        except ApiError as error:
            if error.status != 404:
                raise
            return await self._write(self._client.create(collection("Lease", self._namespace), self._new()))
        holder = lease["spec"].get("holderIdentity")
        if holder and holder != self._identity and not self._expired(lease):
            return False
        lease["spec"] = self._spec(lease["spec"], taken=holder != self._identity)
        return await self._write(self._client.replace(self._path, lease))

    async def _write(self, request: Coroutine[None, None, Manifest]) -> bool:
        try:
            await request
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        return True

    def _expired(self, lease: Manifest) -> bool:
        now = asyncio.get_running_loop().time()
        version = lease["metadata"]["resourceVersion"]
        if self._sighting is None or self._sighting.version != version:
            self._sighting = _Sighting(version, now)
        duration: float = lease["spec"].get("leaseDurationSeconds", DURATION_SECONDS)
        return now - self._sighting.at > duration

    def _new(self) -> Manifest:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec({}, taken=True),
        }

    def _spec(self, before: Manifest, taken: bool) -> Manifest:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = {"holderIdentity": self._identity, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now}
        if not taken:
            return before | spec
        return before | spec | {"acquireTime": now, "leaseTransitions": before.get("leaseTransitions", -1) + 1}
