"""What differs between roles and stages, as data. Nothing else knows a role's nature."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from alignment_api.spec import AlignmentJobSpec

PoolName = Literal["onDemand", "spot", "cpu"]
StageName = Literal["prepare", "train", "evaluate"]
PORT = 8000
"""The port of a role's HTTP server in a pod: /healthz, /status, /metrics for all, more for those that serve."""


@dataclass(frozen=True)
class Role:
    """One model copy with a job."""

    name: str
    trainable: bool
    """Optimizer state: its pods are one gang with attempts. A frozen role's pods have incarnations, each its own."""
    accelerated: bool = True
    """Holds a model; False is a pod without a GPU."""
    serves: bool = False
    """Other roles call it over HTTP, so it has a headless Service of ready pods."""


ROLES = {
    role.name: role
    for role in (
        Role("prepare", trainable=False, accelerated=False),
        Role("policy", trainable=True),
        Role("reference", trainable=False, serves=True),
        Role("evaluator", trainable=False),
    )
}


@dataclass(frozen=True)
class Stage:
    """A part of a job whose pods exist only while it runs. It ends when its lead ends well."""

    name: StageName
    lead: str
    """The role whose exit ends the stage."""
    helpers: tuple[str, ...] = ()
    """The other roles of the stage."""
    waits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Role -> the roles that must be ready before its pods may be scheduled. Without cycles."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role of the stage, its lead first."""
        return (self.lead, *self.helpers)


_OFFLINE = (
    Stage("prepare", lead="prepare", helpers=("reference",), waits={"reference": ("prepare",)}),
    Stage("train", lead="policy"),
    Stage("evaluate", lead="evaluator"),
)
STAGES: dict[str, tuple[Stage, ...]] = {"dpo": _OFFLINE}
"""Algorithm -> its stages, in order."""


def stages_of(spec: AlignmentJobSpec) -> tuple[Stage, ...]:
    """The stages of this very job: a role placed `with` another has no pods of its own."""
    return tuple(
        Stage(stage.name, stage.lead, tuple(h for h in stage.helpers if _has_pods(spec, h)), stage.waits)
        for stage in STAGES[spec.algorithm.name]
    )


def _has_pods(spec: AlignmentJobSpec, role: str) -> bool:
    return not str(getattr(getattr(spec.roles, role), "placement", "")).startswith("with")
