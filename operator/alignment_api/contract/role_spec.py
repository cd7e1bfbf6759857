"""Sizes and places of a job's roles, as an engineer writes them. What a role is stands in `roles.py`."""

from __future__ import annotations

from typing import Any, Literal

from alignment_api.contract.base import Contract
from alignment_api.contract.numbers import GangPods, Ranks, Servers
from alignment_api.contract.quantity import Quantity


class Role(Contract):
    """Sizes that every role has. Absent sizes come from the planner."""

    cpu: Quantity | None = None
    """CPU cores of one pod, for example 4 or 500m."""
    memory: Quantity | None = None
    """Memory of one pod, for example 16Gi."""
    ephemeral_storage: Quantity | None = None
    """Disk of one pod for logs and /tmp, where hf:// and s3:// models are downloaded, and models on their way to an
    s3:// output stand, for example 20Gi. Default: 4Gi, or 10Gi on pools with GPUs, and four bytes for each parameter of
    such models."""
    pod_template: dict[str, Any] | None = None
    """A patch over the built pod, under the pool's own; named lists (containers, volumes, env) merge by name,
    tolerations are added. What it may hold is the platform's policy to say."""


class AcceleratedRole(Role):
    """A role that holds a model."""

    gpus: Ranks | None = None
    """GPUs of one pod, on a pool that has them. Of a trainee each has a process; those of a server hold as many copies
    of its model as have room, each on one GPU or over several."""
    processes: Ranks | None = None
    """CPU processes of one pod, on a pool without GPUs."""


class PrepareRole(Role):
    """Pins, checks and tokenizes; no GPU. It loads a model that fits into its memory to prove it, of a larger one a few
    layers."""


class PolicyRole(AcceleratedRole):
    """The trainee."""

    replicas: GangPods = 1
    """Pods of the gang. More than one needs storage that several nodes can mount."""
    placement: Literal["onDemand", "spot"] = "onDemand"
    """`spot` is cheaper and is restarted from its last checkpoint when a node is reclaimed."""


class ReferenceRole(AcceleratedRole):
    """The frozen model of the KL term."""

    replicas: Servers = 1
    """Servers; may change while the job runs. 0 pauses the work."""
    placement: Literal["spot", "onDemand", "withPolicy"] = "spot"
    """`withPolicy` computes the reference in the policy's own process before its first step; no server then."""


class ActorRole(AcceleratedRole):
    """The trainee of PPO and GRPO."""

    replicas: GangPods = 1
    """Pods of the gang. More than one needs storage that several nodes can mount."""
    placement: Literal["onDemand"] = "onDemand"
    """Always on demand: losing it stops every other role."""


class CriticRole(AcceleratedRole):
    """The value model of PPO; one gang with the actor."""

    replicas: GangPods = 1
    """Pods of the gang. More than one needs storage that several nodes can mount."""
    placement: Literal["onDemand", "withActor"] = "onDemand"
    """`withActor` keeps it in the actor's process, which needs the memory of both; no pods then."""


class RewardRole(AcceleratedRole):
    """Servers of the reward models; functions need none."""

    replicas: Servers = 1
    """Servers, each with every reward model of the job; may change while the job runs. 0 pauses the work."""
    placement: Literal["spot", "onDemand"] = "spot"
    """Losing one costs a repeat of what it computed, no more."""


class RolloutRole(AcceleratedRole):
    """vLLM servers that sample completions."""

    replicas: Servers = 1
    """Servers; may change while the job runs. 0 pauses the work."""
    placement: Literal["spot", "onDemand"] = "spot"
    """A lost server's requests are sent to another."""
    kv_cache_memory: Quantity | None = None
    """Memory of keys and values, over the server's GPUs, for example 4Gi. It must hold one sequence of
    training.maxLength. Default: what weights leave of a GPU, 1Gi on CPUs."""


class EvaluatorRole(AcceleratedRole):
    """Scores the result on the held-out rows."""

    placement: Literal["spot", "onDemand"] = "spot"
    """Losing it costs a repeat of the evaluation, no more."""


class Roles(Contract):
    """Each key is optional. A role that the algorithm does not have may not be given."""

    prepare: PrepareRole = PrepareRole()
    """The CPU pod that checks data and model before anything costly starts."""
    policy: PolicyRole = PolicyRole()
    """The trainee of every algorithm but ppo and grpo, and of stage `reward`."""
    actor: ActorRole = ActorRole()
    """The trainee of ppo and grpo."""
    critic: CriticRole = CriticRole()
    """The value model of ppo."""
    reference: ReferenceRole = ReferenceRole()
    """Servers of the frozen reference."""
    reward: RewardRole = RewardRole()
    """Servers of the reward models of ppo and grpo."""
    rollout: RolloutRole = RolloutRole()
    """vLLM servers of ppo and grpo."""
    evaluator: EvaluatorRole = EvaluatorRole()
    """The evaluation after training."""
