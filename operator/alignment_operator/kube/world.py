"""A cluster as a World: where a plan meets the apiserver."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from alignment_api.contract.context import InstanceStatus
from alignment_api.contract.job import JOB_LABEL, KIND, AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.status import AlignmentJobStatus
from alignment_api.contract.stored import Unreadable, read_stored_job
from alignment_api.rules.check import why_not_stored
from alignment_operator.kube.apply import Applier
from alignment_operator.kube.client import ApiError, KubeClient, Manifest
from alignment_operator.kube.events import EventPoster, transitions
from alignment_operator.kube.nodes import NodeCounts, NodeView
from alignment_operator.kube.observe import SeenPod
from alignment_operator.kube.paths import collection, named
from alignment_operator.kube.reflector import Reflector
from alignment_operator.kube.telemetry import Telemetry
from alignment_operator.places import claims
from alignment_operator.plan.types import JobKey, Observed, Plan, VolumeView
from alignment_operator.reconcile import Conflict

MESSAGE_CHARACTERS = 32768
Pods = Reflector[SeenPod, JobKey]
Nodes = Reflector[NodeView, str]


@dataclass(frozen=True)
class Sight:
    """What the world is seen through."""

    pods: Pods
    nodes: Nodes
    platform: Callable[[], Platform]
    """The platform as it is now; it may change while the operator runs."""
    status: Callable[[SeenPod], InstanceStatus | None]
    """What a pod's process said last."""


class KubeWorld:
    """Implements `reconcile.World`. Pods and nodes come from the mirrors; the job itself is always read live."""

    def __init__(self, client: KubeClient, sight: Sight, telemetry: Telemetry, events: EventPoster) -> None:
        self._client = client
        self._sight = sight
        self._telemetry = telemetry
        self._events = events
        self._node_counts = NodeCounts(sight.nodes)
        self._applier = Applier(client, sight.pods)
        self._written: dict[JobKey, str] = {}

    def clock(self) -> datetime:
        """Now, UTC."""
        return datetime.now(UTC)

    def is_own_write(self, key: JobKey, version: str) -> bool:
        """The job's change to `version` was our own status, so there is nothing to look at."""
        return self._written.get(key) == version

    async def observe(self, key: JobKey) -> Observed | None:
        """What is; None when the job is gone, is being deleted, or cannot be understood (then its status says why).

        Raises ServedByAnother where its namespace has an operator of its own.
        """
        await self._client.permit(key.namespace)
        raw = await self._read(named(KIND, key.namespace, key.name))
        if raw is None or raw["metadata"].get("deletionTimestamp"):
            self.forget(key)
            return None
        job = await self._parse(key, raw)
        if job is None:
            return None
        pods = await self._pods(key, job)
        platform = self._platform(job)
        return Observed(
            job=job,
            platform=platform,
            pods=tuple(replace(pod.view, status=self._sight.status(pod)) for pod in pods),
            volumes=await self._volumes(job, platform),
            nodes=self._node_counts.of(platform),
            refused=self._applier.refused(job),
        )

    async def record(self, job: AlignmentJob, status: AlignmentJobStatus) -> None:
        """Write the status if it differs. Raises Conflict when the job has changed since it was observed."""
        key = _key_of(job)
        self._telemetry.saw_phase(key, status.phase)
        if status == job.status:
            return
        before = _as_stored(job.status, exclude_unset=True)
        await self._write_status(key, job.metadata.resource_version, merge_patch(before, _as_stored(status)))
        self._events.post(job, transitions(job.status, status), self.clock())

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
        """The job as it is stored; None where this release could not manage it, and then its status says so."""
        try:
            return read_stored_job(raw)
        except Unreadable as error:
            before = raw.get("status", {})
            after = unreadable_status(raw, error, self.clock())
        if after != before:
            await self._write_status(key, raw["metadata"]["resourceVersion"], merge_patch(before, after))
        return None

    async def _write_status(self, key: JobKey, version: str, changes: Manifest) -> None:
        patch = {"metadata": {"resourceVersion": version}, "status": changes}
        try:
            answer = await self._client.patch(named(KIND, key.namespace, key.name) + "/status", patch)
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
            pods = _of(job, filter(None, map(self._sight.pods.see, answer["items"])))
        return tuple([replace(pod, view=replace(pod.view, node_lost=await self._node_lost(pod))) for pod in pods])

    async def _node_lost(self, pod: SeenPod) -> bool:
        if not pod.node or not self._sight.nodes.whole:
            return False  # where nodes cannot be seen, the pod's own end, eviction or deadline tells
        node = self._sight.nodes.get("", pod.node)
        if node is None:  # gone, or so new that the mirror does not have it
            raw = await self._read(named("Node", "", pod.node))
            node = None if raw is None else self._sight.nodes.see(raw)
        return node is None or node.unreachable

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

    def forget(self, key: JobKey) -> None:
        """The job is gone, or another's."""
        self._written.pop(key, None)
        self._applier.forget(key)
        self._telemetry.saw_phase(key, None)


def unreadable_status(raw: Manifest, error: Unreadable, now: datetime) -> Manifest:
    """The status of a job that this release cannot manage: as it was, but for the word on it.

    One that asks to start is refused. One that another release has started stays as it is, its pods too.
    """
    status, generation = raw.get("status", {}), raw["metadata"].get("generation", 1)
    if "startedAt" in status:
        said = ("Unknown", "NotUnderstood", f"{error}; its pods are left alone: install the release that started it")
    else:
        said = ("False", "Refused", "; ".join(why_not_stored(raw)) or str(error))
    before: Manifest = next((c for c in status.get("conditions", ()) if c["type"] == "Admitted"), {})
    since = before.get("lastTransitionTime") if before.get("status") == said[0] else None
    admitted = {
        "type": "Admitted",
        "status": said[0],
        "reason": said[1],
        "message": said[2][:MESSAGE_CHARACTERS],
        "lastTransitionTime": since or now.isoformat().replace("+00:00", "Z"),
        "observedGeneration": generation,
    }
    others = [c for c in status.get("conditions", ()) if c["type"] != "Admitted"]
    return {"phase": "Pending", **status, "conditions": [*others, admitted], "observedGeneration": generation}


def merge_patch(before: Manifest, after: Manifest) -> Manifest:
    """What makes `after` of `before` (RFC 7386). What neither knows, and what has not changed, stays as it is."""
    changed = {name: value for name, value in after.items() if name not in before or before[name] != value}
    nested = {
        name: merge_patch(before[name], value)
        for name, value in changed.items()
        if isinstance(value, dict) and isinstance(before.get(name), dict)
    }
    return dict.fromkeys(before.keys() - after.keys()) | changed | nested


def _as_stored(status: AlignmentJobStatus, exclude_unset: bool = False) -> Manifest:
    return status.model_dump(mode="json", exclude_none=True, exclude_unset=exclude_unset)


def _key_of(job: AlignmentJob) -> JobKey:
    return JobKey(job.metadata.namespace or "default", job.metadata.name)


def _of(job: AlignmentJob, pods: Iterable[SeenPod]) -> tuple[SeenPod, ...]:
    return tuple(pod for pod in pods if pod.owner_uid == job.metadata.uid)
