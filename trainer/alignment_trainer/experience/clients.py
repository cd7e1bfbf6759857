"""The roles that sample and judge, behind HTTP; asked by rank 0 of the actor, and by the evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment_api.contract.algorithms import Grpo, Ppo
from alignment_api.derived.micro_batch import tokens_of
from alignment_trainer.data.examples import PromptExample
from alignment_trainer.data.experience import Rollout, Samples, rollout_of
from alignment_trainer.experience.frozen_client import FrozenClient
from alignment_trainer.experience.rollout_client import Rollouts, SamplingPlan
from alignment_trainer.model.folder import read_json
from alignment_trainer.process.instance import Instance
from alignment_trainer.rewards import FunctionScorer
from alignment_trainer.rewards.total import RewardSum, model_components, score_decoder
from alignment_trainer.serving.peers import resolved
from alignment_trainer.serving.pool import ServerGroup
from alignment_trainer.serving.readiness import wait_for_servers
from alignment_trainer.serving.wire import LOGPROBS, AnswerFormat, scores_format
from alignment_trainer.weights.publisher import WeightPublisher

FIRST_ANSWER_SECONDS = 300.0
"""For a server to be found and to answer at all; afterwards servers may be away for longer."""
HELD_OUT = 2**32 - 1
"""In place of a step in the seeds of held-out samples: every evaluation draws the same random numbers."""


@dataclass(frozen=True)
class OnlineClients:
    """Who samples, scores and judges for one process. ends: token ids that end a completion. seed: the job's."""

    options: Ppo | Grpo
    rollouts: Rollouts
    reward_sum: RewardSum
    reward_client: FrozenClient | None
    reference_client: FrozenClient | None
    ends: tuple[int, ...]
    seed: int
    instance: Instance

    def wait_for_servers(self) -> None:
        """Waits until each role that is asked has a server that answers. Raises PhaseStalled."""
        stop = self.instance.stop
        for client in (self.reward_client, self.reference_client):
            if client is not None:
                wait_for_servers(client.servers.role, client.servers.peers, stop, FIRST_ANSWER_SECONDS)
        wait_for_servers("rollout", self.rollouts.addresses, stop, FIRST_ANSWER_SECONDS)

    def sample(self, rows: Sequence[PromptExample], step: int, version: int, former: Samples) -> Samples:
        """Completions to learn from, with those that were sampled before; not all where this process shall go."""
        plan = SamplingPlan.of(self.options, self.ends, (self.seed, step), version)
        return self.rollouts.sample(rows, plan, self.instance.stop, former)

    def sample_held_out(self, rows: Sequence[PromptExample], version: int) -> Rollout | None:
        """One completion of each held-out prompt, by these very weights; None where this process shall go."""
        options = self.options
        seed = (self.seed, HELD_OUT)
        plan = SamplingPlan(1, options.max_new_tokens, options.temperature, self.ends, seed, (version, version))
        samples = self.rollouts.sample(rows, plan, self.instance.stop)
        return None if samples.missing(len(rows)) else rollout_of(rows, samples)

    def rewards(self, rollout: Rollout) -> tuple[dict[str, Tensor], Tensor] | None:
        """Each reward's scores (N,) by name, and their weighted sum; None where this process shall go."""
        components = self.reward_sum.components(rollout, self.instance.stop)
        self.instance.metrics.set("function_timeouts", self.reward_sum.functions.timeouts)
        self.instance.metrics.set("function_skips", self.reward_sum.functions.skipped)
        return None if components is None else (components, self.reward_sum.total(components))

    def reference(self, rollout: Rollout) -> Tensor | None:
        """(tokens,) log-probs by the frozen reference, none at all where there is none; None where it shall go."""
        if self.reference_client is None:
            return torch.empty(0)
        logprobs = self.reference_client.ask(rollout.groups, self.instance.stop)
        return None if logprobs is None else torch.from_numpy(logprobs)


_SERVER_GAUGES = {"reference": "servers", "reward": "reward_servers"}
"""Role -> gauge of how many of its servers answer."""


@dataclass(frozen=True)
class PinnedPolicy:
    """The policy as `prepare` pinned it: its fingerprint, its folder and its tokenizer."""

    fingerprint: str
    folder: Path
    tokenizer: Any


def make_functions(instance: Instance) -> FunctionScorer:
    """The job's reward functions; close it at the end."""
    algorithm = instance.spec.algorithm
    return FunctionScorer(algorithm.rewards, instance.context.sources, f"spec.algorithm.{algorithm.name}")


def make_clients(
    instance: Instance, publisher: WeightPublisher, functions: FunctionScorer, model: PinnedPolicy
) -> OnlineClients:
    """The servers of this instance's peers; roles that the job does not have are left out."""
    options, metrics = instance.spec.algorithm.online, instance.metrics
    if options is None:
        raise ValueError(f"algorithm {instance.spec.algorithm.name} samples nothing")
    ends = end_tokens(model.folder, model.tokenizer)
    has_models = bool(model_components(options.rewards))
    scores = scores_format(score_decoder(options.rewards))
    reward_client = _frozen_client(instance, "reward", scores) if has_models else None
    return OnlineClients(
        options=options,
        rollouts=Rollouts(publisher.servers, publisher.attempt, instance.token, metrics),
        reward_sum=RewardSum(
            rewards=options.rewards,
            functions=functions,
            models=reward_client.ask if reward_client is not None else None,
            tokenizer=model.tokenizer,
            ends=ends,
        ),
        reward_client=reward_client,
        reference_client=_frozen_client(instance, "reference", LOGPROBS, model.fingerprint)
        if "reference" in instance.context.peers
        else None,
        ends=ends,
        seed=instance.spec.training.seed,
        instance=instance,
    )


def end_tokens(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """What ends a completion: the tokenizer's end of sequence, and those of the model's generation config."""
    file = folder / "generation_config.json"
    named = read_json(file).get("eos_token_id") if file.is_file() else None
    found = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    return tuple(sorted(found))


def _frozen_client(instance: Instance, role: str, answers: AnswerFormat, fingerprint: str = "") -> FrozenClient:
    servers = ServerGroup(
        role=role,
        peers=resolved(instance.context.peers.get(role, ())),
        token=instance.token,
        on_count=lambda count: instance.metrics.set(_SERVER_GAUGES[role], count),
    )
    return FrozenClient(servers, answers, fingerprint, tokens_of(instance.spec.training))
