"""Creates, releases and deletes what a plan says. Every call may be repeated."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_operator import names
from alignment_operator.kube.client import STRATEGIC_PATCH, ApiError, KubeClient, Manifest
from alignment_operator.kube.observe import SeenPod
from alignment_operator.kube.paths import collection, named
from alignment_operator.kube.reflector import Reflector
from alignment_operator.plan.types import JobKey, Plan, Removal, Support
from alignment_operator.reconcile import Conflict
from alignment_operator.resources import build_objects, build_pod, build_token

SUPPORT_SECONDS = 300.0
"""What was made this long ago is made sure of again: somebody may have deleted a Service."""
ENDED_KINDS = ("ConfigMap", "Service", "NetworkPolicy")
"""What goes with the end of a job, besides its token and its PodGroups. Volumes are not among them."""
NOT_SERVED = (
    "the apiserver serves no PodGroup of scheduling.k8s.io/v1beta1, which the platform's `gang: podGroup` asks for; "
    "turn it on (Kubernetes 1.37, feature gate GenericWorkload, runtime-config), or write `gang: none`"
)


@dataclass(frozen=True)
class _Made:
    """What a job leans on, as last made."""

    uid: str
    support: Support | None
    until: float
    """Loop time."""


class Applier:
    """Brings the cluster to a plan. Deletes carry the UID, so that a pod of the same name is never hit by mistake."""

    def __init__(self, client: KubeClient, pods: Reflector[SeenPod, JobKey]) -> None:
        self._client = client
        self._pods = pods
        self._made: dict[JobKey, _Made] = {}

    def forget(self, key: JobKey) -> None:
        """The job is gone."""
        self._made.pop(key, None)

    async def apply(self, job: AlignmentJob, plan: Plan, platform: Platform) -> None:
        """Support first, then pods. One that fails stops none of the others; the first error is raised at the end.

        Raises Conflict where a pod that was to go has ended unseen: it must be counted first.
        """
        await self._support(job, plan, platform)
        namespace = _namespace(job)
        results = await asyncio.gather(
            *(self._create(namespace, build_pod(job, instance, platform)) for instance in plan.create),
            *(self._release(namespace, name) for name in plan.release),
            *(self._remove(namespace, removal) for removal in plan.delete),
            return_exceptions=True,
        )
        for error in results:
            if isinstance(error, BaseException):
                raise error

    async def _support(self, job: AlignmentJob, plan: Plan, platform: Platform) -> None:
        now = asyncio.get_running_loop().time()
        key = JobKey(_namespace(job), job.metadata.name)
        made = self._made.get(key)
        fresh = made is not None and made.uid == job.metadata.uid and now < made.until
        if fresh and made is not None and made.support == plan.support and not plan.create:
            return
        if plan.support is None:
            await self._clear(job, platform)
        else:
            await self._create(key.namespace, build_token(job, secrets.token_urlsafe(32)))
            for manifest in build_objects(job, plan.support, platform):
                await self._create(key.namespace, manifest)
        self._made[key] = _Made(job.metadata.uid, plan.support, now + SUPPORT_SECONDS)

    async def _create(self, namespace: str, manifest: Manifest) -> None:
        """AlreadyExists is the lock: names tell lives apart, so what exists is what was wanted."""
        try:
            await self._client.create(collection(manifest["kind"], namespace), manifest)
        except ApiError as error:
            if error.status == 404 and manifest["kind"] == "PodGroup":
                raise ApiError(error.status, error.reason, NOT_SERVED, "POST PodGroup") from error
            if error.reason != "AlreadyExists":
                raise

    async def _release(self, namespace: str, name: str) -> None:
        """Remove our scheduling gate, and no other."""
        patch = {"spec": {"schedulingGates": [{"$patch": "delete", "name": names.READY_GATE}]}}
        try:
            await self._client.patch(named("Pod", namespace, name), patch, content_type=STRATEGIC_PATCH)
        except ApiError as error:
            if error.status != 404:
                raise

    async def _remove(self, namespace: str, removal: Removal) -> None:
        path = named("Pod", namespace, removal.name)
        await self._refuse_if_ended_unseen(path, namespace, removal)
        options: Manifest = {"preconditions": {"uid": removal.uid}}
        if removal.grace is not None:
            options["gracePeriodSeconds"] = int(removal.grace.total_seconds())
        await self._delete(path, options)

    async def _refuse_if_ended_unseen(self, path: str, namespace: str, removal: Removal) -> None:
        """A live look before the delete: the outcome of a pod goes with the pod."""
        seen = self._pods.get(namespace, removal.name)
        if seen is None or seen.view.ended:
            return
        try:
            live = await self._client.get(path)
        except ApiError as error:
            if error.status == 404:
                return
            raise
        if live["metadata"]["uid"] == removal.uid and live["status"].get("phase") in ("Succeeded", "Failed"):
            raise Conflict(f"pod {removal.name} ended before it was deleted")

    async def _clear(self, job: AlignmentJob, platform: Platform) -> None:
        """The job has ended: what its pods leant on goes, its volumes stay."""
        namespace = _namespace(job)
        selector = {"labelSelector": f"{names.UID_LABEL}={job.metadata.uid}"}
        for kind in (*ENDED_KINDS, *(["PodGroup"] if platform.gang == "podGroup" else [])):
            answer = await self._client.get(collection(kind, namespace), selector)
            await self._delete_all(named(kind, namespace, item["metadata"]["name"]) for item in answer["items"])
        # By name, for the operator may not list Secrets.
        await self._delete(named("Secret", namespace, names.token_name(job)))

    async def _delete_all(self, paths: Iterable[str]) -> None:
        for path in paths:
            await self._delete(path)

    async def _delete(self, path: str, options: Manifest | None = None) -> None:
        try:
            await self._client.delete(path, options)
        except ApiError as error:
            # 409: the UID is another's, so ours is gone
            if error.status not in (404, 409):
                raise


def _namespace(job: AlignmentJob) -> str:
    return job.metadata.namespace or "default"
