"""Progress, asked of the processes themselves: GET /status of each stage's leading pod.

For people's eyes only: nothing that decides a plan depends on an answer, so a silent pod costs a short timeout and no
more. How a pod ended stands in its termination message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

import aiohttp
from pydantic import ValidationError

from alignment_api.contract.context import InstanceStatus
from alignment_api.contract.roles import PORT, STAGES
from alignment_operator.kube.client import KubeClient
from alignment_operator.kube.observe import SeenPod
from alignment_operator.kube.paths import named
from alignment_operator.plan.types import JobKey

TIMEOUT_SECONDS = 1.5
EVERY_SECONDS = 3.0
AFTER_SILENCE_SECONDS = 15.0
LEADS = frozenset(stage.lead for stages in STAGES.values() for stage in stages)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answer:
    due: float
    """Loop time from which the pod is asked again."""
    status: InstanceStatus | None


class StatusPoller:
    """The last answer of every leading pod; a pod is asked at most every few seconds, all of them at once."""

    def __init__(self, client: KubeClient) -> None:
        self._client = client
        self._answers: dict[JobKey, dict[str, _Answer]] = {}

    async def statuses(self, key: JobKey, pods: Iterable[SeenPod]) -> dict[str, InstanceStatus]:
        """Pod UID -> what the pod says, for those of the job's pods that can be asked and have answered."""
        before, now = self._answers.get(key, {}), asyncio.get_running_loop().time()
        asked = [pod for pod in pods if _can_answer(pod)]
        answers = {pod.view.uid: before[pod.view.uid] for pod in asked if pod.view.uid in before}
        due = [pod for pod in asked if pod.view.uid not in answers or answers[pod.view.uid].due <= now]
        for pod, status in zip(due, await asyncio.gather(*map(self._ask, due)), strict=True):
            pause = EVERY_SECONDS if status is not None else AFTER_SILENCE_SECONDS
            answers[pod.view.uid] = _Answer(now + pause, status)
        self._answers[key] = answers
        return {uid: answer.status for uid, answer in answers.items() if answer.status is not None}

    def forget(self, key: JobKey) -> None:
        """The job is gone."""
        self._answers.pop(key, None)

    async def _ask(self, pod: SeenPod) -> InstanceStatus | None:
        try:
            text = await self._client.probe(self._url(pod), TIMEOUT_SECONDS)
            return InstanceStatus.model_validate_json(text, strict=True, by_name=False, extra="ignore")
        except (aiohttp.ClientError, TimeoutError, ValidationError) as error:
            log.info("no status from pod", extra={"pod": pod.view.name, "error": str(error)})
            return None

    def _url(self, pod: SeenPod) -> str:
        if self._client.in_cluster:
            host = f"[{pod.address}]" if ":" in pod.address else pod.address
            return f"http://{host}:{PORT}/status"
        return f"{named('Pod', pod.key.namespace, pod.view.name)}:{PORT}/proxy/status"


def _can_answer(pod: SeenPod) -> bool:
    view = pod.view
    return view.role in LEADS and view.index == 0 and view.phase == "Running" and bool(pod.address)
