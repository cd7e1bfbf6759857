"""The operator, put together: mirrors and jobs' events in, passes out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from alignment_api.contract.job import JOB_LABEL
from alignment_operator.kube.client import UNAVAILABLE, KubeClient
from alignment_operator.kube.events import EventPoster
from alignment_operator.kube.nodes import NodeView, see_node
from alignment_operator.kube.observe import SeenPod, see_pod
from alignment_operator.kube.paths import collection
from alignment_operator.kube.platform import PlatformSource
from alignment_operator.kube.queue import WorkQueue
from alignment_operator.kube.reflector import Collection, Reflector
from alignment_operator.kube.telemetry import Telemetry
from alignment_operator.kube.world import KubeWorld, Sight
from alignment_operator.plan.types import JobKey
from alignment_operator.reconcile import Conflict, reconcile

AFTER_CONFLICT = timedelta(milliseconds=200)
TICK_SECONDS = 5.0
STOP_SECONDS = 10.0

log = logging.getLogger(__name__)


class Operator:
    """Everything that runs while the lease is held. It is told of jobs from outside, and mirrors pods and nodes."""

    def __init__(
        self, client: KubeClient, platform: PlatformSource, telemetry: Telemetry, namespace: str | None, identity: str
    ) -> None:
        self.identity = identity
        self._platform = platform
        self._telemetry = telemetry
        self._jobs: set[JobKey] = set()
        pods: Collection[SeenPod, JobKey] = Collection(
            collection("Pod", namespace), see_pod, owner=lambda pod: pod.key, selector=JOB_LABEL
        )
        nodes: Collection[NodeView, str] = Collection(collection("Node"), see_node, owner=lambda node: node.name)
        self.pods = Reflector(client, pods, self.look_at)
        self.nodes = Reflector(client, nodes, self._node_changed)
        self._queue = WorkQueue(self._pass, report=_report)
        sight = Sight(self.pods, self.nodes, lambda: platform.current)
        self._world = KubeWorld(client, sight, telemetry, EventPoster(client, identity))

    async def run(self) -> None:
        """Mirror pods and nodes and follow the platform, until cancelled. Raises what must not happen."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.pods.run())
            tasks.create_task(self.nodes.run())
            tasks.create_task(self._platform.run(self._look_at_all))
            tasks.create_task(self._tick())

    async def ready(self) -> None:
        """Wait until both mirrors are complete: a plan on half of them would be wrong."""
        await self.pods.synced()
        await self.nodes.synced()

    async def stop(self) -> None:
        """Start no more passes; those that run may end."""
        await self._queue.close(STOP_SECONDS)

    def job_changed(self, key: JobKey, version: str, gone: bool) -> None:
        """A job's event. Our own status write comes back as one, and is no news."""
        (self._jobs.discard if gone else self._jobs.add)(key)
        if gone or not self._world.is_own_write(key, version):
            self._queue.add(key)

    def look_at(self, key: JobKey) -> None:
        """Something of the job has changed."""
        self._queue.add(key)

    def _look_at_all(self) -> None:
        for key in self._jobs:
            self._queue.add(key)

    def _node_changed(self, name: str) -> None:
        """Jobs with a pod there, and those with a pod that waits for any node."""
        for key in {pod.key for pod in self.pods.all() if pod.node in (name, "")}:
            self._queue.add(key)

    async def _pass(self, key: JobKey) -> timedelta | None:
        with self._measured():
            try:
                return await reconcile(key, self._world)
            except Conflict as conflict:
                log.info("changed under us, looking again", extra={"key": str(key), "conflict": str(conflict)})
                return AFTER_CONFLICT

    @contextmanager
    def _measured(self) -> Iterator[None]:
        start = time.perf_counter()
        result = "error"
        try:
            yield
            result = "ok"
        finally:
            self._telemetry.reconcile_seconds.labels(result).observe(time.perf_counter() - start)
            self._telemetry.beat()

    async def _tick(self) -> None:
        while True:
            if self._queue.depth == 0:
                self._telemetry.beat()
            self._telemetry.queue_depth.set(self._queue.depth)
            self._telemetry.relists.labels("Pod").set(self.pods.relists)
            self._telemetry.relists.labels("Node").set(self.nodes.relists)
            await asyncio.sleep(TICK_SECONDS)


def _report(key: JobKey, error: Exception) -> None:
    """What the apiserver refuses, or cannot answer now, needs no traceback; anything else is a bug and has one."""
    if isinstance(error, UNAVAILABLE):
        log.warning("pass failed, trying again", extra={"key": str(key), "error": repr(error)})
    else:
        log.error("pass failed", extra={"key": str(key)}, exc_info=error)
