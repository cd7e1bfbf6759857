"""A cluster as a World: where a plan meets the apiserver."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from alignment_api.job import JOB_LABEL, KIND, AlignmentJob
from alignment_api.manifest import describe_invalid
from alignment_api.platform import Platform
from alignment_api.status import AlignmentJobStatus
from alignment_operator.kube.apply import Applier
from alignment_operator.kube.client import JSON_PATCH, ApiError, KubeClient, Manifest
from alignment_operator.kube.events import EventPoster, transitions
from alignment_operator.kube.nodes import NodeView, count_nodes, see_node
from alignment_operator.kube.observe import SeenPod, see_pod
from alignment_operator.kube.paths import collection, named
from alignment_operator.kube.poll import StatusPoller
from alignment_operator.kube.reflector import Reflector
from alignment_operator.kube.telemetry import Telemetry
from alignment_operator.places import claims
from alignment_operator.plan.types import JobKey, Observed, Plan, PodView, VolumeView
from alignment_operator.reconcile import Conflict

Pods = Reflector[SeenPod, JobKey]
Nodes = Reflector[NodeView, str]


@dataclass(frozen=True)
class Sight:
    """What the world is seen through."""

    pods: Pods
    nodes: Nodes
    platform: Callable[[], Platform]
    """The platform as it is now; it may change while the operator runs."""


class KubeWorld:
    """Implements `reconcile.World`. Pods and nodes come from the mirrors; the job itself is always read live."""

    def __init__(self, client: KubeClient, sight: Sight, telemetry: Telemetry, events: EventPoster) -> None:
        self._client = client
        self._sight = sight
        self._telemetry = telemetry
        self._events = events
        self._poller = StatusPoller(client)
        self._applier = Applier(client, sight.pods)
        self._written: dict[JobKey, str] = {}

    def clock(self) -> datetime:
        """Now, UTC."""
        return datetime.now(UTC)

    def is_own_write(self, key: JobKey, version: str) -> bool:
        """The job's change to `version` was our own status, so there is nothing to look at."""
        return self._written.get(key) == version

    async def observe(self, key: JobKey) -> Observed | None:
        """What is; None when the job is gone, is being deleted, or cannot be understood (then its status says why)."""
        raw = await self._read(named(KIND, key.namespace, key.name))
        if raw is None or raw["metadata"].get("deletionTimestamp"):
            self._forget(key)
            return None
        job = await self._parse(key, raw)
        if job is None:
            return None
        pods = await self._pods(key, job)
        platform = self._platform(job)
        return Observed(
            job=job,
            platform=platform,
            pods=await self._with_statuses(key, pods),
            volumes=await self._volumes(job, platform),
            nodes=count_nodes(platform, self._sight.nodes.all()),
            refused=self._applier.refused(job),
        )

    async def record(self, job: AlignmentJob, status: AlignmentJobStatus) -> None:
        """Write the status if it differs. Raises Conflict when the job has changed since it was observed."""
        key = _key_of(job)
        self._telemetry.saw_phase(key, status.phase)
        if status == job.status:
            return
        await self._write_status(key, job.metadata.resource_version, _dump(status))
        await self._events.post(job, transitions(job.status, status), self.clock())

    async def apply(self, job: AlignmentJob, plan: Plan) -> timedelta | None:
        """Create, release and delete; when to try again what is refused."""
        return await self._applier.apply(job, plan, self._platform(job))

    def _platform(self, job: AlignmentJob) -> Platform:
        return self._sight.platform().as_pinned(job.status.platform)

    async def _read(self, path: str) -> Manifest | None:
        try:
            return await self._client.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _parse(self, key: JobKey, raw: Manifest) -> AlignmentJob | None:
        """The job; None where it was stored before the contract became stricter, and then its status says so."""
        try:
            return AlignmentJob.model_validate_json(json.dumps(raw), strict=True, by_name=False)
        except ValidationError as error:
            problems = "; ".join(describe_invalid(AlignmentJob, error))
        status = refused(raw.get("status", {}), problems, raw["metadata"].get("generation", 1), self.clock())
        if status != raw.get("status"):
            await self._write_status(key, raw["metadata"]["resourceVersion"], status)
        return None

    async def _write_status(self, key: JobKey, version: str, status: Manifest) -> None:
        patch = [
            {"op": "replace", "path": "/metadata/resourceVersion", "value": version},
            {"op": "add", "path": "/status", "value": status},  # add replaces, and leaves nothing of the old one
        ]
        try:
            answer = await self._client.patch(
                named(KIND, key.namespace, key.name) + "/status", patch, content_type=JSON_PATCH
            )
        except ApiError as error:
            if error.status in (404, 409):
                raise Conflict(str(error)) from error
            raise
        self._written[key] = answer["metadata"]["resourceVersion"]

    async def _pods(self, key: JobKey, job: AlignmentJob) -> tuple[SeenPod, ...]:
        """The job's pods. Where the mirror lacks one that the status has seen, the API itself is asked: what a pod's
        loss sets off (a new attempt) must not hang on a watch that lags."""
        pods = _of(job, self._sight.pods.of(key))
        seen = {record.uid for record in job.status.instances if record.uid is not None and record.end is None}
        if not seen <= {pod.view.uid for pod in pods}:
            selector = {"labelSelector": f"{JOB_LABEL}={key.name}"}
            answer = await self._client.get(collection("Pod", key.namespace), selector)
            pods = _of(job, filter(None, map(see_pod, answer["items"])))
        return tuple([replace(pod, view=replace(pod.view, node_lost=await self._node_lost(pod))) for pod in pods])

    async def _node_lost(self, pod: SeenPod) -> bool:
        if not pod.node:
            return False
        node = self._sight.nodes.get("", pod.node)
        if node is None:  # gone, or so new that the mirror does not have it
            raw = await self._read(named("Node", "", pod.node))
            node = None if raw is None else see_node(raw)
        return node is None or node.unreachable

    async def _with_statuses(self, key: JobKey, pods: tuple[SeenPod, ...]) -> tuple[PodView, ...]:
        statuses = await self._poller.statuses(key, pods)
        return tuple(replace(pod.view, status=statuses.get(pod.view.uid)) for pod in pods)

    async def _volumes(self, job: AlignmentJob, platform: Platform) -> dict[str, VolumeView]:
        """The claims that the job names and that exist: read live, for they are the user's and may come late, and
        read until the job starts, since nothing asks for them after that."""
        if job.status.started_at is not None:
            return {}
        found = {}
        for claim in claims(job, platform):
            raw = await self._read(named("PersistentVolumeClaim", _key_of(job).namespace, claim))
            if raw is not None:
                found[claim] = VolumeView(tuple(raw["spec"].get("accessModes", ())))
        return found

    def _forget(self, key: JobKey) -> None:
        self._written.pop(key, None)
        self._applier.forget(key)
        self._poller.forget(key)
        self._telemetry.saw_phase(key, None)


def refused(status: Manifest, problems: str, generation: int, now: datetime) -> Manifest:
    """The status of a job whose stored form breaks the contract: as it was, but not admitted."""
    conditions = [c for c in status.get("conditions", ()) if c["type"] != "Admitted"]
    before: Manifest = next((c for c in status.get("conditions", ()) if c["type"] == "Admitted"), {})
    stays = before.get("status") == "False"
    admitted = {
        "type": "Admitted",
        "status": "False",
        "reason": "InvalidSpec",
        "message": problems[:32768],
        "lastTransitionTime": before["lastTransitionTime"] if stays else now.isoformat().replace("+00:00", "Z"),
        "observedGeneration": generation,
    }
    return {"phase": "Pending", **status, "conditions": [*conditions, admitted], "observedGeneration": generation}


def _dump(status: AlignmentJobStatus) -> Manifest:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def _key_of(job: AlignmentJob) -> JobKey:
    return JobKey(job.metadata.namespace or "default", job.metadata.name)


def _of(job: AlignmentJob, pods: Iterable[SeenPod]) -> tuple[SeenPod, ...]:
    return tuple(pod for pod in pods if pod.owner_uid == job.metadata.uid)
