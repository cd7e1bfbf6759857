"""One operator at a time: a Lease of coordination.k8s.io, as client-go does it.

Another's lease counts as expired when it has not changed for its duration by our own clock, so that clocks need not
agree. Exits are counted once even without it (records carry preconditions); the lease keeps two operators from working
against each other's conflicts.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from alignment_operator.kube.client import UNAVAILABLE, ApiError, KubeClient, Manifest
from alignment_operator.kube.paths import collection, named

DURATION_SECONDS = 15
RENEW_DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 2.0
LOOKED_AT = "alignment.run/looked-at"
"""Annotation of a Lease that an operator of the whole cluster has looked at."""

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Somebody else may be acting now; this process must end."""


@dataclass(frozen=True)
class _Sighting:
    """The lease of another as first seen with this version."""

    version: str
    at: float


class Lease:
    """`acquire`, then `keep` beside the work, then `release`.

    Its requests have a lane of their own: what keeps the process in charge must not wait behind the work. They are
    tried once, and again at the lease's own pace: a conflict may be with a write of our own whose answer was lost, so
    that only a lease that is read with another's name in it is another's.
    """

    def __init__(self, client: KubeClient, namespace: str, name: str, identity: str) -> None:
        self._client = client.lane("lease")
        self.namespace = namespace
        self._name = name
        self._identity = identity
        self._sighting: _Sighting | None = None
        self._renewed_at = 0.0
        self.problem: str | None = "the Lease has not been read yet"
        """Why a standby could not take over; None where it could."""
        self.was_looked_at = False
        """Another, who does not want it, has looked whether somebody holds it."""

    async def acquire(self) -> None:
        """Wait until the lease is ours."""
        while await self._attempt() != self._identity:  # noqa: ASYNC110 - the apiserver has no event for an expiry
            await asyncio.sleep(RETRY_SECONDS)
        log.info("lease acquired", extra={"identity": self._identity})

    async def keep(self) -> None:
        """Renew until cancelled. Raises LeaseLost where another holds it, or at the deadline since the last renewal."""
        clock = asyncio.get_running_loop().time
        pause = RETRY_SECONDS
        while True:
            await asyncio.sleep(pause)
            deadline = self._renewed_at + RENEW_DEADLINE_SECONDS
            try:
                async with asyncio.timeout_at(deadline):
                    holder = await self._attempt()
            except TimeoutError:
                holder = None
            if holder not in (None, self._identity):
                raise LeaseLost(f"another holds it: {holder}")
            if holder is None and clock() >= deadline:
                raise LeaseLost(f"not renewed for {RENEW_DEADLINE_SECONDS:g} s: {self.problem}")
            pause = RETRY_SECONDS if holder == self._identity else RETRY_SECONDS / 4

    def check(self) -> None:
        """Raises LeaseLost where others may think by now that nobody holds it: also after a sleep of the whole process,
        before `keep` has had its turn."""
        age = asyncio.get_running_loop().time() - self._renewed_at
        if age >= DURATION_SECONDS:
            raise LeaseLost(f"not renewed for {age:.0f} s")

    async def look(self) -> str | None:
        """Who else holds it now; None where nobody does, or one whose time is over. The first look leaves a mark."""
        lease = await self._read()
        other = self._other(lease)
        if other is None and not _is_marked(lease):
            lease["metadata"]["annotations"] = {**(lease["metadata"].get("annotations") or {}), LOOKED_AT: "true"}
            await self._write(lease)
        return other

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
        return named("Lease", self.namespace, self._name)

    async def _attempt(self) -> str | None:
        """Create, take over or renew, once. Returns who holds it; None where that is not known, or nobody does yet."""
        try:
            holder = await self._take()
        except UNAVAILABLE as error:
            conflict = isinstance(error, ApiError) and error.status == 409  # somebody was faster, perhaps ourselves
            self.problem = None if conflict else f"the Lease was not read or written: {str(error) or repr(error)}"
            log.warning("lease not read or written, trying again", extra={"error": repr(error)})
            return None
        self.problem = None
        return holder

    async def _take(self) -> str:
        lease = await self._read()
        other = self._other(lease)
        if other is not None:
            return other
        lease["spec"] = self._spec(lease["spec"], taken=lease["spec"].get("holderIdentity") != self._identity)
        began = asyncio.get_running_loop().time()  # another counts from when it sees the write, which is later
        await self._write(lease)
        self._renewed_at = began
        self.was_looked_at = _is_marked(lease)
        return self._identity

    async def _write(self, lease: Manifest) -> None:
        if "resourceVersion" in lease["metadata"]:
            await self._client.replace(self._path, lease)
        else:
            await self._client.create(collection("Lease", self.namespace), lease)

    async def _read(self) -> Manifest:
        """The lease; a new one, without a version, where there is none."""
        try:
            return await self._client.get(self._path)
        except ApiError as error:
            if error.status != 404:
                raise
        metadata = {"name": self._name, "namespace": self.namespace}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": {}}

    def _other(self, lease: Manifest) -> str | None:
        holder: str = lease["spec"].get("holderIdentity") or ""
        return None if holder in ("", self._identity) or self._expired(lease) else holder

    def _expired(self, lease: Manifest) -> bool:
        now = asyncio.get_running_loop().time()
        version = lease["metadata"]["resourceVersion"]
        if self._sighting is None or self._sighting.version != version:
            self._sighting = _Sighting(version, now)
        duration: float = lease["spec"].get("leaseDurationSeconds", DURATION_SECONDS)
        return now - self._sighting.at > duration

    def _spec(self, before: Manifest, taken: bool) -> Manifest:
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        spec = {"holderIdentity": self._identity, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now}
        if not taken:
            return before | spec
        return before | spec | {"acquireTime": now, "leaseTransitions": before.get("leaseTransitions", -1) + 1}


def _is_marked(lease: Manifest) -> bool:
    return LOOKED_AT in (lease["metadata"].get("annotations") or {})
