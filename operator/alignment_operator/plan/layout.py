"""The job laid out, once a pass: its stages with the slots of each, who dies with whom, and where they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.roles import ROLES, PoolName, Role, Stage
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.precision import as_far_as_known
from alignment_api.derived.reward_stage import spec_of_stage
from alignment_api.derived.role_memory import replicas_of
from alignment_api.derived.sizing import Size, size_of
from alignment_api.derived.stages import stages_of
from alignment_operator.plan.types import Observed

Slot = tuple[str, int]
"""A role and an index among its replicas: what an instance fills, life after life."""
Group = tuple[Slot, ...]
"""Slots that live and die together: the trainable pods of a stage (actor and critic), or one frozen pod."""


@dataclass(frozen=True)
class RoleLayout:
    """A role of a stage, resolved."""

    nature: Role
    pool: PoolName
    replicas: int
    size: Size
    """Of one of its pods."""


@dataclass(frozen=True)
class StageLayout:
    """A stage, resolved: its lead's role first."""

    stage: Stage
    roles: Mapping[str, RoleLayout]

    @cached_property
    def gang(self) -> Group:
        """The slots of the stage's gang, its lead's first; none where nothing trains."""
        return tuple(
            (name, index)
            for name, role in self.roles.items()
            if role.nature.trainable
            for index in range(role.replicas)
        )

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """All slots, those of the gang together."""
        frozen = (
            ((name, index),)
            for name, role in self.roles.items()
            if not role.nature.trainable
            for index in range(role.replicas)
        )
        return (self.gang, *frozen) if self.gang else tuple(frozen)

    @cached_property
    def slots(self) -> frozenset[Slot]:
        """All slots."""
        return frozenset(slot for group in self.groups for slot in group)


@dataclass(frozen=True)
class Layout:
    """Every stage of a job, in order."""

    stages: tuple[StageLayout, ...]

    @cached_property
    def pools(self) -> Mapping[str, PoolName]:
        """Every role of the job, in the order of its stages, with its pool."""
        return {name: role.pool for stage in self.stages for name, role in stage.roles.items()}


def lay_out(observed: Observed) -> Layout:
    """The layout of a job as far as its sizes are known."""
    return Layout(tuple(_lay_out(observed, stage) for stage in stages_of(observed.job.spec)))


def pool_of(spec: AlignmentJobSpec, role: str) -> PoolName:
    """Where the role's pods go: what its placement says; a role without a model needs no paid node."""
    placement: PoolName = getattr(getattr(spec.roles, role), "placement", "cpu")
    return placement


def model_in(job: AlignmentJob, stage: Stage) -> Decoder | None:
    """The model of a stage; None where nobody has looked at it: `prepare` tells of spec.model alone."""
    same = spec_of_stage(job.spec, stage.name).model == job.spec.model
    return Decoder.reported(job.status.model) if same and job.status.model is not None else None


def spec_in(observed: Observed, stage: Stage) -> AlignmentJobSpec:
    """The spec of a stage, with the precision as far as it is known."""
    job = observed.job
    return spec_of_stage(as_far_as_known(job.spec, observed.platform, job.status.precision), stage.name)


def _lay_out(observed: Observed, stage: Stage) -> StageLayout:
    spec, model = spec_in(observed, stage), model_in(observed.job, stage)

    def resolve(role: str) -> RoleLayout:
        pool = pool_of(spec, role)
        size = size_of(spec, role, observed.platform.pools.named(pool), model)
        return RoleLayout(ROLES[role], pool, replicas_of(spec, role), size)

    return StageLayout(stage, {role: resolve(role) for role in stage.roles})
