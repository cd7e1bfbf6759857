"""The operator, put together: mirrors and jobs' events in, passes out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from alignment_api.contract.job import JOB_LABEL, KIND
from alignment_operator.kube.client import METADATA_LIST, UNAVAILABLE, KubeClient
from alignment_operator.kube.events import EventPoster
from alignment_operator.kube.kind import JobKind
from alignment_operator.kube.leadership import LOOK_SECONDS, ServedByAnother
from alignment_operator.kube.nodes import NodeView, see_node
from alignment_operator.kube.observe import SeenPod, see_pod
from alignment_operator.kube.paths import collection
from alignment_operator.kube.platform import PlatformSource
from alignment_operator.kube.poll import StatusPoller
from alignment_operator.kube.queue import WorkQueue
from alignment_operator.kube.reflector import PAGE, Collection, Reflector
from alignment_operator.kube.telemetry import Telemetry
from alignment_operator.kube.world import KubeWorld, Sight
from alignment_operator.plan.types import JobKey
from alignment_operator.reconcile import Conflict, reconcile

AFTER_CONFLICT = timedelta(milliseconds=200)
WHILE_SERVED_BY_ANOTHER = timedelta(seconds=3 * LOOK_SECONDS)
TICK_SECONDS = 5.0
SWEEP_SECONDS = 600.0
"""Between looks at every job there is: a watch that begins anew tells of no end, and one that hangs of nothing."""
STOP_SECONDS = 10.0
LAST_EVENTS_SECONDS = 2.0

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
        self._jobs_path = collection(KIND, namespace)
        self._lists = client.lane("mirrors")
        self._kind = JobKind(self._lists, namespace)
        pods: Collection[SeenPod, JobKey] = Collection(
            collection("Pod", namespace), see_pod, owner=lambda pod: pod.key, selector=JOB_LABEL
        )
        nodes: Collection[NodeView, str] = Collection(collection("Node"), see_node, owner=lambda node: node.name)
        self.pods = Reflector(self._lists, pods, self.look_at)
        self.nodes = Reflector(self._lists, nodes, self._node_changed)
        self._mirrors: dict[str, Reflector[Any, Any]] = {"Pod": self.pods, "Node": self.nodes}
        self._needed = (self.pods, self.nodes) if namespace is None else (self.pods,)
        """Without these no job can be looked after. Who serves a namespace may have no right to nodes."""
        self._queue = WorkQueue(self._pass, report=_report, owner=lambda key: key.namespace, held=True)
        self._poller = StatusPoller(client, self.pods.all, self.look_at)
        self._events = EventPoster(client, identity, telemetry.dropped_events.inc)
        sight = Sight(self.pods, self.nodes, lambda: platform.current, self._poller.status)
        self._world = KubeWorld(client, sight, telemetry, self._events)

    async def run(self) -> None:
        """Mirror pods and nodes and follow the platform, until cancelled. Raises what must not happen."""
        async with asyncio.TaskGroup() as tasks:
            for mirror in self._mirrors.values():
                tasks.create_task(mirror.run())
            for work in (self._poller.run(), self._events.run(), self._tick(), self._sweep(), self._begin()):
                tasks.create_task(work)
            tasks.create_task(self._platform.run(self._look_at_all))

    async def ready(self) -> None:
        """Wait until the needed mirrors are whole and AlignmentJobs are served."""
        await self._whole()
        await self._kind.served()

    def problem(self) -> str | None:
        """What keeps jobs from being looked after, in words."""
        problems = (*(mirror.problem for mirror in self._needed), self._kind.problem)
        return "; ".join(problem for problem in problems if problem is not None) or None

    async def stop(self) -> None:
        """Start no more passes; those that run may end, and what they had to say be told."""
        await self._queue.close(STOP_SECONDS)
        await self._events.drain(LAST_EVENTS_SECONDS)

    def halt(self) -> None:
        """Stop every pass where it is: the right to act is gone."""
        self._queue.cancel()

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

    async def _whole(self) -> None:
        for mirror in self._needed:
            await mirror.synced()
        await self.nodes.answered()

    async def _begin(self) -> None:
        """A plan on half of the mirrors would be wrong."""
        await self._whole()
        self._queue.release()

    async def _pass(self, key: JobKey) -> timedelta | None:
        with self._measured() as measured:
            try:
                return await reconcile(key, self._world)
            except Conflict as conflict:
                measured.result = "conflict"
                log.info("changed under us, looking again", extra={"key": str(key), "conflict": str(conflict)})
                return AFTER_CONFLICT
            except ServedByAnother:
                measured.result = "left"
                self._world.forget(key)
                return WHILE_SERVED_BY_ANOTHER

    @contextmanager
    def _measured(self) -> Iterator[_Measured]:
        start, measured = time.perf_counter(), _Measured()
        try:
            yield measured
        except BaseException:
            measured.result = "error"
            raise
        finally:
            self._telemetry.reconcile_seconds.labels(measured.result).observe(time.perf_counter() - start)
            self._telemetry.beat()

    async def _tick(self) -> None:
        while True:
            if self._queue.running == 0:
                self._telemetry.beat()
            self._telemetry.queue_depth.set(self._queue.depth)
            for kind, mirror in self._mirrors.items():
                self._telemetry.relists.labels(kind).set(mirror.relists)
                self._telemetry.unreadable.labels(kind).set(mirror.unreadable)
                self._telemetry.silent_seconds.labels(kind).set(mirror.silent_seconds)
            await asyncio.sleep(TICK_SECONDS)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            known = set(self._jobs)
            try:
                listed = await self._listed()
            except UNAVAILABLE as error:
                log.warning("jobs not listed", extra={"error": str(error)})
                continue
            for key in known | listed:
                self.job_changed(key, "", gone=key not in listed)

    async def _listed(self) -> set[JobKey]:
        params, found = {"limit": PAGE}, set()
        while True:
            page = await self._lists.get(self._jobs_path, params, accept=METADATA_LIST)
            found |= {JobKey(job["metadata"]["namespace"], job["metadata"]["name"]) for job in page["items"]}
            if not page["metadata"].get("continue"):
                return found
            params["continue"] = page["metadata"]["continue"]


class _Measured:
    result = "ok"


def _report(key: JobKey, error: Exception) -> None:
    """What the apiserver refuses, or cannot answer now, needs no traceback; anything else is a bug and has one."""
    if isinstance(error, UNAVAILABLE):
        log.warning("pass failed, trying again", extra={"key": str(key), "error": repr(error)})
    else:
        log.error("pass failed", extra={"key": str(key)}, exc_info=error)
