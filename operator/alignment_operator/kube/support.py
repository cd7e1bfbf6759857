"""What a job's pods lean on: looked for before anything is made, made, mended where it drifts, collected when it ends.

Existence is never found out by creating: Kubernetes counts a quota before it looks whether the name exists, so a
second create of an object that is there may be refused for want of room.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform
from alignment_api.contract.roles import ROLES
from alignment_operator import names
from alignment_operator.kube.client import APPLY_PATCH, ApiError, KubeClient, Manifest
from alignment_operator.kube.observe import SeenPod, mounted
from alignment_operator.kube.paths import collection, named
from alignment_operator.kube.reflector import Reflector
from alignment_operator.kube.refusals import REQUEST_SECONDS, Refusals
from alignment_operator.plan.types import JobKey, Support
from alignment_operator.resources import build_objects, build_token

FIELD_MANAGER = "alignment-operator"
LABELLED = ("ConfigMap", "Service", "NetworkPolicy")
"""Kinds that are found by the job's label and go with its end, as PodGroups do. Volumes are not among them."""
MENDED = frozenset({"Service", "NetworkPolicy"})
"""Kinds that are brought back to what they should be. A ConfigMap is immutable, a PodGroup is its attempt's, a volume
is as it was made."""
OF_AN_ATTEMPT = frozenset({"ConfigMap", "PodGroup"})
"""Kinds of which every attempt has its own."""
NOT_SERVED = (
    "the apiserver serves no PodGroup of scheduling.k8s.io/v1beta1, which the platform's `gang: podGroup` asks for; "
    "turn it on (Kubernetes 1.37, feature gate GenericWorkload, runtime-config), or write `gang: none`"
)
NOT_OURS = (
    "an object of this name exists and is not this job's (it has {lack}), so it is not used; remove it, or give the "
    "job another name"
)
DRY_RUN: Manifest = {"dryRun": ["All"]}

Objects = dict[str, Manifest]
"""Name -> object, of one kind."""


@dataclass(frozen=True)
class Ground:
    """What there is for pods to lean on."""

    absent: frozenset[str] = frozenset()
    """Objects that could not be made, as `Kind name`."""
    foreign: bool = False
    """One of the names is taken by an object that is not the job's."""
    leftovers: bool = False
    """Something of an attempt that is over is there still, for one of its pods is."""

    def carries(self, pod: Manifest) -> bool:
        """Whether the pod may be made: one that mounts what is not there would hold its node and never start."""
        return not self.foreign and not (mounted(pod) & self.absent)


class SupportKeeper:
    """Brings what pods lean on to what a plan says."""

    def __init__(self, client: KubeClient, pods: Reflector[SeenPod, JobKey]) -> None:
        self._client = client
        self._pods = pods

    async def keep(self, job: AlignmentJob, support: Support, platform: Platform, refusals: Refusals) -> Ground:
        """Make what is missing, mend what has drifted, collect what is of an attempt that is over."""
        token = build_token(job, secrets.token_urlsafe(32))
        wanted = build_objects(job, support, platform)
        found = await self._find(job, platform, refusals)
        makes: dict[str, Callable[[], Awaitable[None]]] = {
            identity(token): partial(self._make_token, namespace_of(job), token)
        }
        for manifest in wanted:
            if manifest["kind"] in found or manifest["kind"] not in kinds(platform):  # else it could not be looked for
                makes[identity(manifest)] = partial(self._bring, job, manifest, found.get(manifest["kind"], {}))
        made = await asyncio.gather(*(refusals.attempt(what, make) for what, make in makes.items()))
        there = {what for what, is_there in zip(makes, made, strict=True) if is_there}
        absent = {identity(manifest) for manifest in (token, *wanted)} - there
        leftovers = await self._collect(job, wanted, found, refusals)
        foreign = any(refusal.reason == "NotOurs" for refusal in refusals.standing)
        return Ground(frozenset(absent), foreign, leftovers)

    async def clear(self, job: AlignmentJob, platform: Platform, refusals: Refusals) -> None:
        """The job has ended: what its pods leant on goes, its volumes stay."""
        namespace = namespace_of(job)
        for kind, objects in (await self._find(job, platform, refusals)).items():
            for name in objects:
                await self._end(kind, namespace, name, refusals)
        # By name, for the operator may not list Secrets.
        await self._end("Secret", namespace, names.token_name(job), refusals)

    async def _find(self, job: AlignmentJob, platform: Platform, refusals: Refusals) -> dict[str, Objects]:
        """The job's objects by kind; a kind that cannot be looked for is left out."""
        found: dict[str, Objects] = {}
        for kind in kinds(platform):

            async def look(kind: str = kind) -> None:
                found[kind] = await self._list(job, kind)

            await refusals.attempt(f"{kind}s of the job", look)
        return found

    async def _list(self, job: AlignmentJob, kind: str) -> Objects:
        selector = {"labelSelector": f"{names.UID_LABEL}={job.metadata.uid}"}
        try:
            answer = await self._client.get(collection(kind, namespace_of(job)), selector)
        except ApiError as error:
            if error.status == 404 and kind == "PodGroup":
                raise ApiError(error.status, "NotServed", NOT_SERVED, "GET PodGroup") from error
            raise
        return {item["metadata"]["name"]: item for item in answer["items"]}

    async def _make_token(self, namespace: str, token: Manifest) -> None:
        """The token's Secret, if there is none. The operator may not read Secrets: a delete that only pretends says
        whether there is one."""
        try:
            path = named("Secret", namespace, token["metadata"]["name"])
            await self._client.delete(path, DRY_RUN, seconds=REQUEST_SECONDS)
        except ApiError as error:
            if error.status != 404:
                raise
        else:
            return
        try:
            await self._create(namespace, token)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise

    async def _bring(self, job: AlignmentJob, manifest: Manifest, found: Objects) -> None:
        """Make it, or mend it. Raises ApiError, NotOurs where another's object has its name."""
        kind, name, namespace = manifest["kind"], manifest["metadata"]["name"], namespace_of(job)
        there = found.get(name)
        if there is None and kind not in (*LABELLED, "PodGroup"):
            there = await self._read(named(kind, namespace, name))
        if there is None:
            try:
                await self._create(namespace, manifest)
            except ApiError as error:
                if error.reason != "AlreadyExists":
                    raise
                # It was made a moment ago and the answer was lost, or it is another's.
                there = (await self._list(job, kind)).get(name, {"metadata": {}})
            else:
                return
        _require_ours(job, manifest, there)
        if kind in MENDED and not _holds(manifest, there):
            options = {"fieldManager": FIELD_MANAGER, "force": "true"}
            await self._client.patch(named(kind, namespace, name), manifest, APPLY_PATCH, options, REQUEST_SECONDS)

    async def _create(self, namespace: str, manifest: Manifest) -> None:
        options = {"fieldManager": FIELD_MANAGER}
        await self._client.create(collection(manifest["kind"], namespace), manifest, options, REQUEST_SECONDS)

    async def _collect(
        self, job: AlignmentJob, wanted: tuple[Manifest, ...], found: Mapping[str, Objects], refusals: Refusals
    ) -> bool:
        """What an attempt had of its own goes with its last pod; returns whether any of it has to stay for now.

        Where a server that was asked for has not shown itself yet, everything stays: it may mount what an older attempt
        made.
        """
        namespace = namespace_of(job)
        current = {identity(manifest) for manifest in wanted}
        used = set[str]().union(*(pod.leans_on for pod in self._pods.of(JobKey(namespace, job.metadata.name))))
        blind = any(
            record.uid is None and record.end is None and not ROLES[record.role].trainable
            for record in job.status.instances
        )
        leftovers = False
        for kind in OF_AN_ATTEMPT & found.keys():
            for name, there in found[kind].items():
                what = f"{kind} {name}"
                if what in current or not _is_owned(job, there):
                    continue
                if blind or what in used:
                    leftovers = True
                else:
                    await self._end(kind, namespace, name, refusals)
        return leftovers

    async def _read(self, path: str) -> Manifest | None:
        try:
            return await self._client.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _end(self, kind: str, namespace: str, name: str, refusals: Refusals) -> None:
        """Delete it. That it could not be made, or mended, a moment ago is no reason to wait."""
        await refusals.attempt(f"end of {kind} {name}", partial(self._delete, named(kind, namespace, name)))

    async def _delete(self, path: str) -> None:
        try:
            await self._client.delete(path, seconds=REQUEST_SECONDS)
        except ApiError as error:
            if error.status != 404:
                raise


def kinds(platform: Platform) -> tuple[str, ...]:
    """Kinds that are found by the job's label on this platform."""
    return (*LABELLED, "PodGroup") if platform.gang == "podGroup" else LABELLED


def identity(manifest: Manifest) -> str:
    """`Kind name`."""
    return f"{manifest['kind']} {manifest['metadata']['name']}"


def namespace_of(job: AlignmentJob) -> str:
    """The job's namespace."""
    return job.metadata.namespace or "default"


def _is_owned(job: AlignmentJob, there: Manifest) -> bool:
    return any(owner["uid"] == job.metadata.uid for owner in there["metadata"].get("ownerReferences", ()))


def _require_ours(job: AlignmentJob, manifest: Manifest, there: Manifest) -> None:
    """Raises ApiError for an object that is not the job's, which its owner tells; of the output's volume, its label."""
    if "ownerReferences" in manifest["metadata"]:
        ours, lack = _is_owned(job, there), f"no owner of UID {job.metadata.uid}"
    else:
        ours = there["metadata"].get("labels", {}).get(names.UID_LABEL) == job.metadata.uid
        lack = f"no label {names.UID_LABEL}: {job.metadata.uid}"
    if not ours:
        raise ApiError(409, "NotOurs", NOT_OURS.format(lack=lack), f"GET {identity(manifest)}")


def _holds(wanted: Any, there: Any) -> bool:
    """Whether `there` says all that `wanted` says; what the apiserver has added is no drift.

    Items of a list come without their kind, which is known; a field that is false may be left out.
    """
    if isinstance(wanted, dict):
        return isinstance(there, dict) and all(
            _holds(value, there.get(key)) for key, value in wanted.items() if key not in ("kind", "apiVersion")
        )
    if isinstance(wanted, list | tuple):
        return isinstance(there, list) and len(wanted) == len(there) and all(map(_holds, wanted, there))
    return bool(wanted == there) or (wanted is False and there is None)
