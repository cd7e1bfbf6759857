"""What must exist, what must go and what to remember, given what is."""

from __future__ import annotations

from datetime import datetime

from alignment_operator.places import makes_output, makes_storage
from alignment_operator.plan.admission import refusals
from alignment_operator.plan.dependencies import gates_to_open, run_clocks, stop_clocks
from alignment_operator.plan.ending import Ending, find_ending
from alignment_operator.plan.ends import count_ends
from alignment_operator.plan.instances import missing_instances, removals
from alignment_operator.plan.lives import open_lives, what_blocks
from alignment_operator.plan.next_look import next_admission, next_look
from alignment_operator.plan.pods import index_pods
from alignment_operator.plan.records import Records, read_records
from alignment_operator.plan.snapshot import Snapshot, take_snapshot
from alignment_operator.plan.stages import StageProgress, follow
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
        status = refused_status(observed, refused, now)
        return Plan(status=status, next_look=next_admission(status, now))
    return _plan_pass(take_snapshot(observed, now))


def _plan_pass(snapshot: Snapshot) -> Plan:
    stages = follow(snapshot, read_records(snapshot))
    counted = count_ends(snapshot, stages)
    ending = find_ending(snapshot, stages.current, counted)
    stage = stages.current if ending is None and not snapshot.spec.suspend else None
    if stage is None:
        return _stand_still(snapshot, stages, counted, ending)
    kept = counted.removed([slot for slot in counted.by_slot if slot not in stage.slots])
    opened = open_lives(snapshot, stage, kept)
    release = gates_to_open(snapshot, stage, opened)
    records = run_clocks(snapshot, stage, opened, release)
    found = Findings(stages, records, what_blocks(snapshot, stage, records))
    return Plan(
        status=derive_status(snapshot, found),
        support=_support(snapshot, stages, records),
        create=missing_instances(snapshot, stage, records),
        delete=removals(snapshot.pods, stage, records, keep_logs=True),
        release=release,
        next_look=next_look(snapshot, found),
    )


def _stand_still(snapshot: Snapshot, stages: StageProgress, counted: Records, ending: Ending | None) -> Plan:
    """Nothing runs: the job is over, or suspended. One that was never started leans on nothing."""
    records = stop_clocks(counted.removed(counted.by_slot))
    found = Findings(stages, records, (), ending)
    begun = ending is None and snapshot.job.status.started_at is not None
    return Plan(
        status=derive_status(snapshot, found),
        support=_support(snapshot, stages, records) if begun else None,
        delete=removals(snapshot.pods, None, records, keep_logs=ending is None or ending.type == "Failed"),
        next_look=next_look(snapshot, found),
    )


def _after_the_end(observed: Observed, now: datetime) -> Plan:
    """Nothing is created any more; after a failure the pods that ended in error stay, for their logs."""
    failed = observed.job.status.phase == "Failed"
    delete = removals(index_pods(observed.pods), None, Records({}, {}), keep_logs=failed)
    return Plan(status=observed.job.status, delete=delete)


def _support(snapshot: Snapshot, stages: StageProgress, records: Records) -> Support:
    job, layout = snapshot.job, snapshot.layout
    trainees = {name: role for stage in layout.stages for name, role in stage.roles.items() if role.nature.trainable}
    return Support(
        attempt=records.attempt,
        makes_storage=makes_storage(job),
        makes_output=makes_output(job, snapshot.observed.platform),
        serving_roles=tuple(dict.fromkeys(role for stage in layout.stages for role in stage.stage.called)),
        gang_roles=tuple(name for name, role in trainees.items() if role.replicas > 1),
        gang=len(stages.current.gang) if stages.current is not None and records.attempt else 0,
    )
