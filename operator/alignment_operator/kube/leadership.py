"""The right to act: whatever is installed, one operator at a time serves a job.

Who serves one namespace holds the Lease `alignment-jobs` there. Who serves the whole cluster holds a Lease in a place
that all of their kind share, and leaves alone every namespace whose own Lease somebody holds: it looks there before it
acts, and a look is good for LOOK_SECONDS. It leaves a mark there, by which whoever takes that Lease knows to wait for
longer than that before its first pass.
"""

from __future__ import annotations

import asyncio
import logging

from alignment_operator.kube.client import KubeClient
from alignment_operator.kube.lease import DURATION_SECONDS, Lease

CLUSTER_LEASE = "alignment-operator"
NAMESPACE_LEASE = "alignment-jobs"
LOOK_SECONDS = 5.0

log = logging.getLogger(__name__)


class ServedByAnother(Exception):
    """The namespace has an operator of its own."""


class Leadership:
    """`lease` is what to acquire and to keep; `check` is asked before everything that is written."""

    def __init__(self, client: KubeClient, namespace: str | None, shared: str, identity: str) -> None:
        """namespace: the one that is served; None: all. shared: where those who serve all have their Lease."""
        self._client = client
        self._serves_all = namespace is None
        self._identity = identity
        self._namespaces: dict[str, _Looks] = {}
        where = (shared, CLUSTER_LEASE) if namespace is None else (namespace, NAMESPACE_LEASE)
        self.lease = Lease(client, *where, identity)

    async def settle(self) -> None:
        """Wait, with the Lease in hand, until whoever serves the whole cluster must have seen it in our namespace."""
        if not self._serves_all and self.lease.was_looked_at:
            await asyncio.sleep(DURATION_SECONDS)

    async def check(self, namespace: str) -> None:
        """Raises LeaseLost where the right to act is gone, ServedByAnother where it does not reach to `namespace`."""
        holder = await self._looks(namespace).holder() if self._serves_all else None
        self.lease.check()
        if holder is not None:
            raise ServedByAnother(f"namespace {namespace} is served by {holder}")

    def _looks(self, namespace: str) -> _Looks:
        if namespace not in self._namespaces:
            self._namespaces[namespace] = _Looks(Lease(self._client, namespace, NAMESPACE_LEASE, self._identity))
        return self._namespaces[namespace]


class _Looks:
    """Who serves one namespace, looked up anew where the last look is too old."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._looking = asyncio.Lock()
        self._good_until = 0.0
        self._found: str | None = None

    async def holder(self) -> str | None:
        """Who, but for us; None where nobody does. Raises what a request may end in."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if now >= self._good_until:
                found = await self._lease.look()
                if found != self._found:
                    log.info("namespace changes hands", extra={"namespace": self._lease.namespace, "to": found or "us"})
                self._found, self._good_until = found, now + LOOK_SECONDS  # the answer may have taken long
            return self._found
