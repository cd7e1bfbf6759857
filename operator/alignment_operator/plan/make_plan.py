"""What must exist, what must go and what to remember, given what is."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from alignment_operator.places import makes_output, makes_storage
from alignment_operator.plan.admission import refusals
from alignment_operator.plan.deadlines import ADMISSION, next_look
from alignment_operator.plan.dependencies import gates_to_open
from alignment_operator.plan.ending import find_ending
from alignment_operator.plan.instances import missing_instances, removals
from alignment_operator.plan.layout import Layout, lay_out
from alignment_operator.plan.pods import Pods, index_pods
from alignment_operator.plan.progress import begin_training, learn
from alignment_operator.plan.records import Records, count_ends, hold_on, open_lives, read_records
from alignment_operator.plan.stages import Course, follow
from alignment_operator.plan.status import Findings, derive_status, refused_status
from alignment_operator.plan.types import Observed, Plan, Support


def make_plan(observed: Observed, now: datetime) -> Plan:
    """One pass for one job: what must exist, what must go and what to remember. Pure, and a fixed point:
    planning again on the recorded status of an unchanged world plans the same."""
    status = observed.job.status
    if status.finished_at is not None:
        return _after_the_end(observed, now)
    refused = refusals(observed) if status.started_at is None else ()
    if refused:
        return Plan(status=refused_status(observed, refused, now), next_look=ADMISSION)
    pods = index_pods(observed.pods)
    return _plan_pass(replace(observed, job=learn(observed.job, pods)), pods, now)


def _plan_pass(observed: Observed, pods: Pods, now: datetime) -> Plan:
    job, layout = observed.job, lay_out(observed)
    course, known = follow(job, layout, read_records(job.status, layout, pods), pods, now)
    at_work = begin_training(observed, course)
    counted = count_ends(known, course.current.groups if course.current is not None else (), pods, now)
    ending = find_ending(at_work, course, counted, pods, now)
    runs = course.current if ending is None and not job.spec.suspend else None
    kept = counted.removed(slot for slot in counted.by_slot if runs is None or slot not in runs.slots)
    groups = runs.groups if runs is not None else ()
    records = open_lives(kept, groups, pods, now)
    held = (hold_on(records, group, pods, now) for group in groups if records.needs_life(group))
    found = Findings(pods, course, records, ending, tuple(hold for hold in held if hold is not None), now)
    wanted = tuple(r for r in records.open() if runs is not None and (r.role, r.index) in runs.slots)
    return Plan(
        status=derive_status(at_work, found),
        support=_support(observed, layout, course, records) if ending is None else None,
        create=missing_instances(job, runs, records, wanted, pods) if runs is not None else (),
        delete=removals(pods, wanted, keep_logs=ending is None or ending.type == "Failed"),
        release=gates_to_open(course.current, records, pods, now) if course.current is not None else (),
        next_look=next_look(at_work.job, pods, found.holds, ending is not None, now),
    )


def _after_the_end(observed: Observed, now: datetime) -> Plan:
    """Nothing is created any more; after a failure the pods that ended in error stay, for their logs."""
    pods = index_pods(observed.pods)
    failed = observed.job.status.phase == "Failed"
    return Plan(
        status=observed.job.status,
        delete=removals(pods, (), keep_logs=failed),
        next_look=next_look(observed.job, pods, (), True, now),
    )


def _support(observed: Observed, layout: Layout, course: Course, records: Records) -> Support:
    job, stages = observed.job, layout.stages
    trainees = {name: role for stage in stages for name, role in stage.roles.items() if role.nature.trainable}
    return Support(
        attempt=records.attempt,
        makes_storage=makes_storage(job),
        makes_output=makes_output(job, observed.platform),
        serving_roles=tuple(dict.fromkeys(role for stage in stages for role in stage.stage.called)),
        gang_roles=tuple(name for name, role in trainees.items() if role.replicas > 1),
        gang=len(course.current.gang) if course.current is not None and records.attempt else 0,
    )
