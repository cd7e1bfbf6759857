"""One pass for one job, the same on a cluster and on a laptop."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Protocol

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.status import AlignmentJobStatus
from alignment_operator.plan.make_plan import make_plan
from alignment_operator.plan.types import JobKey, Observed, Plan


class World(Protocol):
    """A runtime: where a plan meets the world."""

    def clock(self) -> datetime:
        """Now, with its time zone."""

    async def observe(self, key: JobKey) -> Observed | None:
        """What is; None when the job is gone or being deleted."""

    async def record(self, job: AlignmentJob, status: AlignmentJobStatus) -> None:
        """Write the status if it differs. Raises Conflict when the job has changed since it was observed."""

    async def apply(self, job: AlignmentJob, plan: Plan) -> timedelta | None:
        """Create, release and delete. What exists already is left alone; what is gone already is fine.

        `job` carries the status that was just recorded. What is refused stops nothing else: it is observed by the next
        pass, and the answer says when to look again because of it; None where nothing is refused.
        """


class Conflict(Exception):
    """The job changed under us; look again."""


async def reconcile(key: JobKey, world: World) -> timedelta | None:
    """One pass for one job; returns when to look again. Safe to run at any time, any number of times."""
    observed = await world.observe(key)
    if observed is None:
        return None  # deleted: its objects go with it, by owner references
    plan = make_plan(observed, world.clock())
    await world.record(observed.job, plan.status)  # counters first: a crash below must not count an exit twice
    retry = await world.apply(observed.job.model_copy(update={"status": plan.status}), plan)
    return min((look for look in (plan.next_look, retry) if look is not None), default=None)
