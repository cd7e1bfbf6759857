"""What differs between roles and stages, as data. Nothing else knows a role's nature."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

PoolName = Literal["onDemand", "spot", "cpu"]
StageName = Literal["prepare", "reward", "train", "evaluate"]
PORT = 8000
"""The port of a role's HTTP server in a pod: /healthz, /status, /metrics for all, more for those that are called."""


@dataclass(frozen=True)
class Role:
    """One model copy with a job."""

    name: str
    trainable: bool = False
    """Optimizer state: the trainable pods of a stage are one gang with attempts. A frozen role's pods have
    incarnations, each its own."""
    accelerated: bool = True
    """Holds a model; False is a pod without a GPU."""
    writes: bool = False
    """Writes to storage, so that its next life waits for the end of this one. What only serves is replaced at once."""
    delivers: bool = False
    """Of ppo and grpo: keeps the newest two versions of the weights in memory (Context.scratch), to give or to take."""

    samples: bool = False
    """Is a vLLM server: of its memory vLLM keeps a share for keys and values, and it starts processes of its own."""


ROLES = {
    role.name: role
    for role in (
        Role("prepare", accelerated=False, writes=True),
        Role("policy", trainable=True, writes=True),
        Role("actor", trainable=True, writes=True, delivers=True),
        Role("critic", trainable=True, writes=True),
        Role("reference"),
        Role("reward"),
        Role("rollout", delivers=True, samples=True),
        Role("evaluator", writes=True, delivers=True),
    )
}

Graph = Mapping[str, tuple[str, ...]]
"""Role -> other roles."""


@dataclass(frozen=True)
class Stage:
    """A part of a job whose pods exist only while it runs. It ends when its lead ends well."""

    name: StageName
    lead: str
    """The role whose exit ends the stage."""
    helpers: tuple[str, ...] = ()
    """The other roles of the stage."""
    waits: Graph = field(default_factory=dict)
    """Role -> the roles that must be ready before its pods may be scheduled. Without cycles."""
    calls: Graph = field(default_factory=dict)
    """Role -> the roles whose servers it calls: those have a Service."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Every role of the stage, its lead first."""
        return (self.lead, *self.helpers)

    @property
    def called(self) -> tuple[str, ...]:
        """The roles that others call."""
        return tuple(role for role in self.roles if any(role in callees for callees in self.calls.values()))

    def among(self, roles: tuple[str, ...]) -> Stage:
        """The stage without the roles that are not among these."""

        def only(graph: Graph) -> Graph:
            return {
                role: tuple(other for other in others if other in roles)
                for role, others in graph.items()
                if role in roles
            }

        helpers = tuple(role for role in self.helpers if role in roles)
        return replace(self, helpers=helpers, waits=only(self.waits), calls=only(self.calls))


_FROZEN = ("reference", "reward", "rollout")
FROM_ROWS = (
    Stage("prepare", lead="prepare"),
    Stage("train", lead="policy"),
    Stage("evaluate", lead="evaluator"),
)
FROM_ROWS_AND_REFERENCE = (
    Stage(
        "prepare",
        lead="prepare",
        helpers=("reference",),
        waits={"reference": ("prepare",)},
        calls={"prepare": ("reference",), "reference": ("prepare",)},
    ),
    *FROM_ROWS[1:],
)
ONLINE = (
    Stage("prepare", lead="prepare"),
    Stage("reward", lead="policy"),
    Stage(
        "train",
        lead="actor",
        helpers=("critic", *_FROZEN),
        waits={"actor": _FROZEN, "critic": _FROZEN},
        calls={"actor": ("critic", *_FROZEN), "rollout": ("actor",)},
    ),
    Stage(
        "evaluate",
        lead="evaluator",
        helpers=_FROZEN,
        waits={"evaluator": _FROZEN},
        calls={"evaluator": _FROZEN, "rollout": ("evaluator",)},
    ),
)
ONLINE_WITHOUT_CRITIC = tuple(stage.among(tuple(role for role in ROLES if role != "critic")) for stage in ONLINE)
