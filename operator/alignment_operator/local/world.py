"""The world of one laptop run: the same plan as on a cluster, met by processes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from alignment_api.contract.context import CONTEXT_VARIABLE
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.roles import ROLES, PoolName
from alignment_api.contract.status import AlignmentJobStatus
from alignment_operator.local import process
from alignment_operator.local.context import Places, build_context
from alignment_operator.local.forking import ForkServer
from alignment_operator.local.machine import NOTICE_SECONDS
from alignment_operator.local.poll import poll
from alignment_operator.local.task import Task
from alignment_operator.plan.types import Instance, JobKey, Observed, Plan, PodView

ROLE_MODULE = "alignment_trainer.main"
Starter = Callable[[Instance, Mapping[str, str], Path], process.RoleProcess]
"""Starts a role's process, given its environment and its log."""
_NODES: Mapping[PoolName, int] = {"onDemand": 1, "spot": 1, "cpu": 1}


class LocalWorld:
    """Holds the run's processes. `close` leaves none behind."""

    def __init__(self, job: AlignmentJob, places: Places, starter: Starter, gpus: int = 0) -> None:
        """`job` has its UID and sources as `local_job` gives them; the folder of `places` is locked.

        starter: `execute` of a command, or `fork_or_execute`.
        """
        self._job = job
        self._places = places
        self._gpus = gpus
        self._starter = starter
        self._tasks: dict[str, Task] = {}
        self.status = places.folder.read_status()
        self.views: tuple[PodView, ...] = ()

    def suspend(self) -> None:
        """From the next pass on the job is suspended: its processes save and go."""
        spec = self._job.spec.model_copy(update={"suspend": True})
        self._job = self._job.model_copy(update={"spec": spec})

    def clock(self) -> datetime:
        """Now, in UTC."""
        return datetime.now(UTC)

    async def observe(self, key: JobKey) -> Observed:
        """The run's processes, each asked how it fares."""
        now = self.clock()
        for task in self._tasks.values():
            task.kill_when_late(now)
            if task.ended:
                self._tidy(task)
        await asyncio.gather(*(self._ask(task) for task in self._tasks.values() if task.running))
        self.views = tuple(task.view(self._places.folder) for task in self._tasks.values())
        self._forget_the_gone()
        return Observed(
            job=self._job.model_copy(update={"status": self.status}),
            platform=self._places.platform,
            pods=self.views,
            nodes=_NODES,
            own_files=True,
        )

    async def record(self, job: AlignmentJob, status: AlignmentJobStatus) -> None:
        """`status.json`, if it differs."""
        if status != self.status:
            self._places.folder.write_status(status)
            self.status = status

    async def apply(self, job: AlignmentJob, plan: Plan) -> None:
        """Starts what must exist, opens gates, asks to go what must go."""
        now = self.clock()
        for removal in plan.delete:
            task = self._tasks.get(removal.name)
            if task is not None and task.uid == removal.uid:
                self._remove(task, now, removal.grace)
        for instance in plan.create:
            if instance.name not in self._tasks:
                self._tasks[instance.name] = Task(instance, created_at=now, gated=instance.gated)
        for name in plan.release:
            self._tasks[name].gated = False
        for task in self._tasks.values():
            if task.process is None and not task.gated and not self._has_predecessor(task):
                self._start(job, task)
        self._remember()

    @property
    def at_rest(self) -> bool:
        """Nothing runs and nothing will: the job is complete, has failed, is suspended, or was refused."""
        done = self.status.phase in ("Complete", "Failed", "Suspended") or self.refusal is not None
        return done and not any(task.running for task in self._tasks.values())

    @property
    def refusal(self) -> str | None:
        """Why nothing of the job may start; a cluster may change and admit it later, a laptop does not."""
        admitted = next((c for c in self.status.conditions if c.type == "Admitted"), None)
        return admitted.message if admitted is not None and admitted.status == "False" else None

    def close(self) -> None:
        """Kills what still runs and forgets the token."""
        for task in self._tasks.values():
            task.kill()
            self._tidy(task)
        self._places.folder.remove_scratch()
        self._places.folder.write_processes({})
        self._places.folder.token_file.unlink(missing_ok=True)

    async def _ask(self, task: Task) -> None:
        instance = task.instance
        status = await asyncio.to_thread(poll, self._places.ports.of(instance.role, instance.index))
        if status is not None and status.is_of(self._job.metadata.uid, instance.role, instance.index, instance.life):
            task.status = status

    def _forget_the_gone(self) -> None:
        # Shown once after its end, as the API shows a deleted pod once more: its outcome has the last checkpoint.
        gone = [task for task in self._tasks.values() if task.go_by and not task.running]
        for task in gone:
            self._forget(task)

    def _forget(self, task: Task) -> None:
        self._tidy(task)
        del self._tasks[task.instance.name]

    def _tidy(self, task: Task) -> None:
        """A process that was killed may leave children (vLLM's engine, ranks) and what it kept in memory."""
        if task.process is not None and not task.tidied:
            process.kill_life(self._places.folder.mark(task.instance.name))
            self._places.folder.remove_scratch(task.instance.name)
            task.tidied = True

    def _remove(self, task: Task, now: datetime, grace: timedelta | None) -> None:
        if task.running:
            notice = self._places.platform.pools.named(task.instance.pool).notice_seconds
            task.ask_to_go(now, timedelta(seconds=notice) if grace is None else grace)
        else:
            self._forget(task)

    def _start(self, job: AlignmentJob, task: Task) -> None:
        gpus = self._free_gpus(task.instance)
        if gpus is None:
            return
        task.gpus = gpus
        folder = self._places.folder
        folder.write_spec(job, task.instance.attempt)
        context = build_context(job, task.instance, self._places)
        name = task.instance.name
        folder.outcome_file(name).unlink(missing_ok=True)
        folder.make_scratch(name)
        own = {CONTEXT_VARIABLE: context.model_dump_json(by_alias=True), process.LIFE_VARIABLE: folder.mark(name)}
        task.process = self._starter(task.instance, {**os.environ, **own, **_visible(gpus)}, folder.log_file(name))

    def _has_predecessor(self, task: Task) -> bool:
        """Whether an older life of its place still runs, and with it holds the port that peers know."""
        place = (task.instance.role, task.instance.index)
        others = (other for other in self._tasks.values() if other is not task and other.running)
        return any((other.instance.role, other.instance.index) == place for other in others)

    def _free_gpus(self, instance: Instance) -> tuple[int, ...] | None:
        taken = {gpu for task in self._tasks.values() if task.running for gpu in task.gpus}
        free = [gpu for gpu in range(self._gpus) if gpu not in taken]
        return tuple(free[: instance.gpus]) if len(free) >= instance.gpus else None

    def _remember(self) -> None:
        pids = [task.process.pid for task in self._tasks.values() if task.process is not None and task.running]
        started = {pid: process.started_at(pid) for pid in pids}
        self._places.folder.write_processes({pid: at for pid, at in started.items() if at is not None})


def execute(command: Sequence[str] = (sys.executable, "-m", ROLE_MODULE)) -> Starter:
    """Starts each role as a command of its own, which its environment tells what it is."""

    def start(instance: Instance, environment: Mapping[str, str], log: Path) -> process.RoleProcess:
        return process.start(list(command), environment, log)

    return start


def fork_or_execute() -> Starter:
    """Forks roles of one process on CPUs from one that has imported torch; executes the others.

    A forked process keeps the environment of its origin in /proc, so what finds lives by their mark would not find the
    processes that vLLM forks; ranks are torchrun's to start; CUDA after a fork was never tried here.
    """
    server, by_command = ForkServer(ROLE_MODULE, preload="alignment_trainer.preload"), execute()

    def start(instance: Instance, environment: Mapping[str, str], log: Path) -> process.RoleProcess:
        if instance.gpus or instance.processes > 1 or ROLES[instance.role].samples:
            return by_command(instance, environment, log)
        return server.start(environment, log)

    return start


def end_stale_processes(places: Places) -> list[int]:
    """Ends what a killed run left in this folder: asked first, for it may be saving. Returns their ids."""
    remembered = places.folder.read_processes()
    stale = [pid for pid, started in remembered.items() if process.started_at(pid) == started]
    process.end_all(stale, notice_seconds=NOTICE_SECONDS)
    process.kill_life(places.folder.mark())
    places.folder.remove_scratch()
    places.folder.write_processes({})
    return stale


def _visible(gpus: tuple[int, ...]) -> dict[str, str]:
    # Without GPUs of its own a process must not find any: it was planned as one of the CPU.
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
