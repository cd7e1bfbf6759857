"""Progress, asked of the processes themselves: GET /status of each stage's leading pod.

Asked beside the passes, which read the last answer and never wait for one; a new answer that tells something asks for a
pass. What an answer may decide, and what only an outcome does, says docs/adr/0024.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import aiohttp

from alignment_api.contract.algorithms import STAGES
from alignment_api.contract.context import InstanceStatus
from alignment_api.contract.roles import PORT
from alignment_operator.kube.client import KubeClient
from alignment_operator.kube.observe import SeenPod
from alignment_operator.kube.paths import named
from alignment_operator.plan.types import JobKey

TIMEOUT_SECONDS = 1.5
EVERY_SECONDS = 5.0
STEPS_SECONDS = 15.0
"""Between passes that only a further step asks for: a person who watches sees it move."""
AFTER_SILENCE_SECONDS = 15.0
TICK_SECONDS = 0.5
CONCURRENCY = 100
"""A thousand silent pods are asked once in 15 s."""
LEADS = frozenset(stage.lead for stages in STAGES.values() for stage in stages)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Answer:
    due: float
    """Loop time from which the pod is asked again; infinite while it is being asked."""
    status: InstanceStatus | None = None
    """Its last word."""
    told: InstanceStatus | None = None
    """The word for which its job was last looked at, and when."""
    told_at: float = -math.inf


class StatusPoller:
    """The last answer of every leading pod."""

    def __init__(
        self, client: KubeClient, pods: Callable[[], Iterable[SeenPod]], notify: Callable[[JobKey], None]
    ) -> None:
        """pods: all there are. notify: told of a job whose pod has something new to tell."""
        self._client = client
        self._pods = pods
        self._notify = notify
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._answers: dict[str, _Answer] = {}

    def status(self, pod: SeenPod) -> InstanceStatus | None:
        """What the pod said last; None where it was not asked or has not answered."""
        answer = self._answers.get(pod.view.uid)
        return answer.status if answer is not None and _can_answer(pod) else None

    async def run(self) -> None:
        """Ask every leading pod every few seconds, until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as asking:
            while True:
                leads = {pod.view.uid: pod for pod in self._pods() if _can_answer(pod)}
                self._answers = {uid: self._answers.get(uid, _Answer(due=0.0)) for uid in leads}
                for uid in [uid for uid, answer in self._answers.items() if answer.due <= loop.time()]:
                    self._answers[uid] = replace(self._answers[uid], due=math.inf)
                    asking.create_task(self._ask(leads[uid]))
                await asyncio.sleep(TICK_SECONDS)

    async def _ask(self, pod: SeenPod) -> None:
        async with self._slots:
            status = await self._probe(pod)
        uid, now = pod.view.uid, asyncio.get_running_loop().time()
        answer = self._answers.get(uid)
        if answer is None:
            return  # ended meanwhile, or not ours any more
        pause = AFTER_SILENCE_SECONDS if status is None else EVERY_SECONDS
        answer = replace(answer, due=now + pause, status=status or answer.status)
        if status is not None and _is_news(status, answer.told, steps=now >= answer.told_at + STEPS_SECONDS):
            answer = replace(answer, told=status, told_at=now)
            self._notify(pod.key)
        self._answers[uid] = answer

    async def _probe(self, pod: SeenPod) -> InstanceStatus | None:
        try:
            text = await self._client.probe(self._url(pod), TIMEOUT_SECONDS)
            status = InstanceStatus.model_validate_json(text, strict=True, by_name=False, extra="ignore")
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.info("no status from pod", extra={"pod": pod.view.name, "error": str(error)})
            return None
        view = pod.view
        if not status.is_of(pod.owner_uid, view.role, view.index, view.life):
            answered = f"{status.role} {status.index}, life {status.life}, of job {status.uid}"
            log.info("status of another pod", extra={"pod": view.name, "answered": answered})
            return None
        return status

    def _url(self, pod: SeenPod) -> str:
        if self._client.in_cluster:
            host = f"[{pod.address}]" if ":" in pod.address else pod.address
            return f"http://{host}:{PORT}/status"
        return f"{named('Pod', pod.key.namespace, pod.view.name)}:{PORT}/proxy/status"


def _can_answer(pod: SeenPod) -> bool:
    view = pod.view
    return view.role in LEADS and view.index == 0 and view.phase == "Running" and bool(pod.address)


def _is_news(now: InstanceStatus, told: InstanceStatus | None, steps: bool) -> bool:
    """Whether a job's status would show it. Rates and estimates flicker: they are shown with a step, and a step counts
    where `steps` says so."""
    if told is None:
        return True
    facts = ("checkpoint", "data", "model", "precision", "micro_batch")
    return any(getattr(now, fact) != getattr(told, fact) for fact in facts) or (steps and _step(now) != _step(told))


def _step(status: InstanceStatus) -> tuple[int, int] | None:
    return None if status.progress is None else (status.progress.step, status.progress.total_steps)
