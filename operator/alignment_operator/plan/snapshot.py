"""What a pass goes by: the job with what its pods have told, laid out, its pods by slot, and the time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_operator.plan.layout import Layout, lay_out
from alignment_operator.plan.pods import Pods, index_pods
from alignment_operator.plan.progress import learn
from alignment_operator.plan.types import Observed


@dataclass(frozen=True)
class Snapshot:
    """Everything that a pass knows when it begins."""

    observed: Observed
    """Its job's status has what the pods have told."""
    layout: Layout
    pods: Pods
    has_advanced: bool
    """A checkpoint has got further than any of this stage before."""
    now: datetime

    @property
    def job(self) -> AlignmentJob:
        """The job."""
        return self.observed.job

    @property
    def spec(self) -> AlignmentJobSpec:
        """What the user wants."""
        return self.observed.job.spec


def take_snapshot(observed: Observed, now: datetime) -> Snapshot:
    """What a pass goes by."""
    pods = index_pods(observed.pods)
    known = replace(observed, job=learn(observed.job, pods))
    advanced = known.job.status.furthest_step > observed.job.status.furthest_step
    return Snapshot(known, lay_out(known), pods, advanced, now)
