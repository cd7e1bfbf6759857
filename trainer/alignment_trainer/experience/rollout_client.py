"""Completions, asked of vLLM servers that come and go, by weights that are new enough."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignment_api.contract.algorithms import Grpo, Ppo
from alignment_trainer.data.examples import PromptExample
from alignment_trainer.data.experience import Sampled, Samples
from alignment_trainer.experience.frozen_client import STALLED_AFTER
from alignment_trainer.process.errors import WireError, describe
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.serving.pool import PoolOptions, ServerGroup, ServerPool
from alignment_trainer.serving.server import Timing
from alignment_trainer.serving.work import ItemLimits, Task
from alignment_trainer.vllm.wire import COMPLETIONS_PATH
from alignment_trainer.weights.publisher import RolloutServer

_OPTIONS = PoolOptions(
    in_flight=64,
    stalled_after=STALLED_AFTER,
    leave_within=1.0,
    items=ItemLimits(servers_lost=5, wrong_answers=None),
    timing=Timing(resolve_every=0.2),
)
"""in_flight: vLLM batches requests itself. servers_lost: a prompt that kills servers would stop the job. resolve_every:
here it asks nobody, it looks at who has registered."""


@dataclass(frozen=True)
class SamplingPlan:
    """How to sample. seed: with a prompt's row it decides its completions. stop: token ids that end one."""

    samples: int
    max_new_tokens: int
    temperature: float
    stop: tuple[int, ...]
    seed: tuple[int, ...]
    versions: tuple[int, int]

    @classmethod
    def of(cls, options: Ppo | Grpo, stop: tuple[int, ...], seed: tuple[int, int], version: int) -> SamplingPlan:
        """For training; `version` is that of the newest weights, `seed` the job's and the step."""
        oldest = max(0, version - options.max_staleness)
        return cls(options.samples, options.max_new_tokens, options.temperature, stop, seed, (oldest, version))

    def request(self, row: PromptExample) -> bytes:
        """The body for one prompt."""
        seed = int(np.random.default_rng((*self.seed, row.row)).integers(2**31))
        body: dict[str, Any] = {
            "versions": self.versions,
            "prompt": row.prompt,
            "n": self.samples,
            "seed": seed,
            "max_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "stop_token_ids": self.stop,
        }
        return json.dumps(body).encode()


@dataclass(frozen=True)
class Rollouts:
    """The rollout servers of an attempt. known: those that have registered and still answer."""

    known: Callable[[], tuple[RolloutServer, ...]]
    attempt: int
    token: str
    metrics: Metrics

    def sample(
        self, rows: Sequence[PromptExample], plan: SamplingPlan, stop: Callable[[], bool], former: Samples | None = None
    ) -> Samples:
        """Every prompt's completions, each prompt once, or dropped with its reason; some are missing where `stop` came.

        former: what was sampled of them before, which is asked of nobody again.
        Raises as `ServerPool.run` does, and RuntimeError where every server reports an error of its weights.
        """
        former = former or Samples()
        missing = former.missing(len(rows))
        if not missing:
            return former
        answers = dict(former.completions)

        def accept(place: int, body: bytes) -> None:
            answers[place] = decode_completions(body, plan)

        task = Task(
            phase=f"completions by weights {plan.versions[0]} to {plan.versions[1]} of attempt {self.attempt}",
            path=COMPLETIONS_PATH,
            encode=lambda place: plan.request(rows[place]),
            accept=accept,
            name=lambda place: f"row {rows[place].row}",
        )

        async def peers() -> frozenset[str]:
            return frozenset(server.url for server in self._fit(plan))

        servers = ServerGroup("rollout", peers, self.token, lambda count: self.metrics.set("rollout_servers", count))
        result = ServerPool(task, servers, _OPTIONS).run(missing, stop)
        self.metrics.add("reissued_requests", result.reissued)
        return Samples(answers, {**former.dropped, **result.dropped})

    async def addresses(self) -> frozenset[str]:
        """Of every server that has registered, whatever its weights."""
        return frozenset(server.url for server in self.known())

    def _fit(self, plan: SamplingPlan) -> Iterator[RolloutServer]:
        """The servers whose weights are new enough."""
        known = self.known()
        broken = [server for server in known if server.error is not None]
        if known and len(broken) == len(known):
            first = broken[0]
            raise RuntimeError(f"no rollout server takes weights {plan.versions[1]}: {first.url}: {first.error}")
        oldest, newest = plan.versions
        return (s for s in known if s.attempt == self.attempt and oldest <= s.version <= newest)


def decode_completions(body: bytes, plan: SamplingPlan) -> tuple[Sampled, ...]:
    """The completions of one prompt. Raises WireError."""
    try:
        answer = json.loads(body)
        version = int(answer["version"])
        found = tuple(
            Sampled(tuple(entry["tokens"]), tuple(map(float, entry["logprobs"])), bool(entry["finished"]), version)
            for entry in answer["completions"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise WireError(f"not completions ({len(body)} bytes): {type(error).__name__}: {describe(error)}") from error
    whole = all(0 < len(one.tokens) == len(one.logprobs) for one in found)
    if len(found) != plan.samples or not whole or not np.isfinite([p for one in found for p in one.logprobs]).all():
        raise WireError(f"{len(found)} completions, or some without finite log-probs; asked for {plan.samples}")
    return found
