"""Creates, releases and deletes what a plan says. Every call may be repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from alignment_api.contract.base import field_path
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.rules.policy import shape_problems
from alignment_operator import names
from alignment_operator.kube.client import STRATEGIC_PATCH, ApiError, KubeClient, Manifest
from alignment_operator.kube.observe import SeenPod, Unreadable, see_pod
from alignment_operator.kube.paths import collection, named
from alignment_operator.kube.reflector import Reflector
from alignment_operator.kube.refusals import REQUEST_SECONDS, Refusals
from alignment_operator.kube.support import Ground, SupportKeeper, namespace_of
from alignment_operator.plan.types import JobKey, Plan, Refusal, Removal, Support
from alignment_operator.reconcile import Conflict
from alignment_operator.resources import build_pod

SUPPORT_SECONDS = 300.0
"""What was looked at this long ago is looked at again: somebody may have deleted or changed a Service."""
LEFTOVER_SECONDS = 10.0
"""The same, while something of an attempt that is over waits for its last pod to go."""
NOT_OUR_POD = "a pod of this name exists and is not this job's, so it is not used; remove it"


@dataclass(frozen=True)
class _Made:
    """What a job leans on, as last looked at."""

    support: Support | None
    platform: Platform
    ground: Ground
    until: float
    """Loop time."""


@dataclass
class _Memory:
    """What is remembered of a job between its passes."""

    uid: str
    support: Refusals = field(default_factory=Refusals)
    pods: Refusals = field(default_factory=Refusals)
    made: _Made | None = None

    def tell(self) -> tuple[Refusal, ...] | None:
        """What stands refused; None before anything was tried."""
        support, pods = self.support.tell(), self.pods.tell()
        return None if support is None or pods is None else support + pods


class Applier:
    """Brings the cluster to a plan. What the apiserver refuses of it stops nothing else, and is remembered."""

    def __init__(self, client: KubeClient, pods: Reflector[SeenPod, JobKey]) -> None:
        self._client = client
        self._pods = pods
        self._support = SupportKeeper(client, pods)
        self._jobs: dict[JobKey, _Memory] = {}

    def forget(self, key: JobKey) -> None:
        """The job is gone."""
        self._jobs.pop(key, None)

    def refused(self, job: AlignmentJob) -> tuple[Refusal, ...] | None:
        """What the apiserver refuses of the job's objects; None before anything was asked of it."""
        return self._memory(job).tell()

    async def apply(self, job: AlignmentJob, plan: Plan, platform: Platform) -> timedelta | None:
        """Support first, then pods; deletes and releases wait for neither. Returns when to try again what was refused.

        Raises Conflict where a pod that was to go has changed since the plan: it may have ended, and must be counted.
        """
        memory = self._memory(job)
        results = await asyncio.gather(
            self._create_all(job, plan, platform, memory), *self._others(job, plan, memory.pods), return_exceptions=True
        )
        memory.pods.settle()
        for error in results:
            if isinstance(error, BaseException):
                raise error
        pauses = [pause for pause in (memory.support.pause(), memory.pods.pause()) if pause is not None]
        return min(pauses, default=None)

    def _memory(self, job: AlignmentJob) -> _Memory:
        key = JobKey(namespace_of(job), job.metadata.name)
        known = self._jobs.get(key)
        if known is None or known.uid != job.metadata.uid:
            known = self._jobs[key] = _Memory(job.metadata.uid)
        return known

    def _others(self, job: AlignmentJob, plan: Plan, refusals: Refusals) -> Iterator[Awaitable[bool]]:
        namespace = namespace_of(job)
        for name in plan.release:
            yield refusals.attempt(f"gate of Pod {name}", partial(self._release, namespace, name))
        for removal in plan.delete:
            yield refusals.attempt(f"end of Pod {removal.name}", partial(self._remove, namespace, removal))

    async def _create_all(self, job: AlignmentJob, plan: Plan, platform: Platform, memory: _Memory) -> None:
        ground = await self._ground(job, plan.support, platform, memory)
        if plan.create and not await memory.pods.attempt("podTemplates", partial(_check_templates, job)):
            return
        pods = (build_pod(job, instance, platform) for instance in plan.create)
        await asyncio.gather(
            *(
                memory.pods.attempt(f"Pod {pod['metadata']['name']}", partial(self._create, job, pod))
                for pod in pods
                if ground.carries(pod)
            )
        )

    async def _ground(self, job: AlignmentJob, support: Support | None, platform: Platform, memory: _Memory) -> Ground:
        """What pods lean on, looked at where the plan, the platform or time asks for it."""
        clock, made = asyncio.get_running_loop().time, memory.made
        if made is not None and (made.support, made.platform) == (support, platform) and clock() < made.until:
            return made.ground
        if support is None and job.status.started_at is None:
            return Ground()  # born suspended, or over before it began: nothing was ever made
        if support is None:
            await self._support.clear(job, platform, memory.support)
            ground = Ground()
        else:
            ground = await self._support.keep(job, support, platform, memory.support)
        memory.support.settle()
        pause = memory.support.retry_seconds(LEFTOVER_SECONDS if ground.leftovers else SUPPORT_SECONDS)
        memory.made = _Made(support, platform, ground, clock() + pause)
        return ground

    async def _create(self, job: AlignmentJob, pod: Manifest) -> None:
        """AlreadyExists is the lock: names tell lives apart, so what exists is what was wanted, if it is ours."""
        namespace, name = namespace_of(job), pod["metadata"]["name"]
        try:
            await self._client.create(collection("Pod", namespace), pod, seconds=REQUEST_SECONDS)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            if not await self._is_ours(job, namespace, name):
                raise ApiError(409, "NotOurs", NOT_OUR_POD, "POST Pod") from error

    async def _is_ours(self, job: AlignmentJob, namespace: str, name: str) -> bool:
        try:
            seen = self._pods.get(namespace, name) or see_pod(await self._client.get(named("Pod", namespace, name)))
        except Unreadable:
            return False
        return seen.owner_uid == job.metadata.uid

    async def _release(self, namespace: str, name: str) -> None:
        """Remove our scheduling gate, and no other."""
        patch = {"spec": {"schedulingGates": [{"$patch": "delete", "name": names.READY_GATE}]}}
        try:
            await self._client.patch(named("Pod", namespace, name), patch, STRATEGIC_PATCH, seconds=REQUEST_SECONDS)
        except ApiError as error:
            if error.status != 404:
                raise

    async def _remove(self, namespace: str, removal: Removal) -> None:
        """With the UID as a precondition, so that a pod of the same name is never hit by mistake, and with the version
        that the plan saw: the outcome of a pod that has ended since goes with the pod."""
        options: Manifest = {"preconditions": {"uid": removal.uid}}
        if removal.version is not None:
            options["preconditions"]["resourceVersion"] = removal.version
        if removal.grace is not None:
            options["gracePeriodSeconds"] = int(removal.grace.total_seconds())
        try:
            await self._client.delete(named("Pod", namespace, removal.name), options)
        except ApiError as error:
            if error.status == 409:
                raise Conflict(f"pod {removal.name} has changed since the plan") from error
            if error.status != 404:
                raise


async def _check_templates(job: AlignmentJob) -> None:
    """Of a job that was admitted before shapes were checked. Raises ApiError, as if the apiserver had looked."""
    for path, message in shape_problems(job.spec):
        raise ApiError(422, "InvalidTemplate", f"{field_path(path)}: {message}", "POST Pod")
