"""What must exist, what must go and what to remember, given what is."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from alignment_api.job import AlignmentJob
from alignment_api.platform import Platform
from alignment_api.roles import ROLES, Stage, stages_of
from alignment_api.sizing import replicas_of
from alignment_api.status import RoleStatus
from alignment_operator.places import makes_output, makes_storage
from alignment_operator.plan.admission import refusals
from alignment_operator.plan.deadlines import ADMISSION, next_look
from alignment_operator.plan.facts import begin_training, learn
from alignment_operator.plan.gates import gates_to_open
from alignment_operator.plan.instances import gang_size, missing_instances, pool_of, removals
from alignment_operator.plan.ledger import (
    Ledger,
    count_ends,
    groups_of,
    hold_on,
    needs_life,
    open_lives,
    read_ledger,
)
from alignment_operator.plan.stages import follow
from alignment_operator.plan.status import Findings, derive_status, refused_status
from alignment_operator.plan.types import Observed, Plan, Support
from alignment_operator.plan.verdict import judge


def make_plan(observed: Observed, now: datetime) -> Plan:
    """One pass for one job: what must exist, what must go and what to remember. Pure, and a fixed point:
    planning again on the recorded status of an unchanged world plans the same."""
    status = observed.job.status
    if status.finished_at is not None:
        return _after_the_end(observed, now)
    refused = refusals(observed) if status.started_at is None else ()
    if refused:
        return Plan(status=refused_status(observed, refused, now), next_look=ADMISSION)
    return _plan_pass(replace(observed, job=learn(observed.job, observed.pods)), now)


def _plan_pass(observed: Observed, now: datetime) -> Plan:
    job, pods = observed.job, observed.pods
    course, ledger = follow(job, read_ledger(job.status, _tallies(job), pods), pods, now)
    if course.has_begun and course.current is not None and ROLES[course.current.lead].trainable:
        job = job.model_copy(update={"status": begin_training(job.status)})
        observed = replace(observed, job=job)
    groups = groups_of(job.spec, course.current) if course.current is not None else ()
    ledger = count_ends(ledger, groups, pods, now)
    verdict = judge(observed, course, ledger, now)
    if verdict is not None or job.spec.suspend:
        groups = ()
    places = {place for group in groups for place in group}
    ledger = ledger.removed(ledger.lines.keys() - places)
    ledger = open_lives(ledger, groups, pods, now)
    held = [hold_on(ledger, group, pods, now) for group in groups if needs_life(ledger, group)]
    holds = tuple(hold for hold in held if hold is not None)
    wanted = tuple(line for place, line in ledger.lines.items() if line.end is None and place in places)
    current = course.current
    plan = Plan(
        status=derive_status(observed, Findings(course, ledger, verdict, holds, now)),
        # A job born suspended has no lines, and makes nothing.
        support=_support(job, observed.platform, ledger, current) if verdict is None and ledger.lines else None,
        create=missing_instances(observed, current, ledger, wanted) if current is not None else (),
        delete=removals(pods, wanted, keep_logs=verdict is None or verdict.type == "Failed"),
        release=gates_to_open(current, ledger, pods, now) if current is not None else (),
    )
    return replace(plan, next_look=next_look(job, pods, holds, verdict is not None, now))


def _after_the_end(observed: Observed, now: datetime) -> Plan:
    """Nothing is created any more; after a failure the pods that ended in error stay, for their logs."""
    failed = observed.job.status.phase == "Failed"
    return Plan(
        status=observed.job.status,
        delete=removals(observed.pods, (), keep_logs=failed),
        next_look=next_look(observed.job, observed.pods, (), True, now),
    )


def _tallies(job: AlignmentJob) -> dict[str, RoleStatus]:
    names = dict.fromkeys(role for stage in stages_of(job.spec) for role in stage.roles)
    return {name: RoleStatus(name=name, pool=pool_of(job.spec, name)) for name in names}


def _support(job: AlignmentJob, platform: Platform, ledger: Ledger, current: Stage | None) -> Support:
    stages = stages_of(job.spec)
    roles = tuple(dict.fromkeys(role for stage in stages for role in stage.roles))
    return Support(
        attempt=ledger.attempt,
        makes_storage=makes_storage(job),
        makes_output=makes_output(job, platform),
        serving_roles=tuple(dict.fromkeys(role for stage in stages for role in stage.called)),
        gang_roles=tuple(role for role in roles if ROLES[role].trainable and replicas_of(job.spec, role) > 1),
        gang=gang_size(job.spec, current) if current is not None and ledger.attempt else 0,
    )
