"""Held-out figures of PPO and GRPO: what completions of prompts that were never trained on are worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from alignment_api.contract.status import Evaluated, Interval
from alignment_trainer.algorithms.advantages import kl_estimate
from alignment_trainer.checkpoint.run_state import Position
from alignment_trainer.data.examples import PromptExample
from alignment_trainer.data.experience import Rollout, padded
from alignment_trainer.data.statistics import mean_interval, share_interval
from alignment_trainer.experience.clients import OnlineClients
from alignment_trainer.experience.metrics import COMPONENT
from alignment_trainer.loop.offline import Interrupted
from alignment_trainer.loop.reporting import Reporter
from alignment_trainer.process import distributed


def judge_held_out(
    rows: Sequence[PromptExample], clients: OnlineClients, version: int, with_kl: bool = False
) -> Evaluated | None:
    """One completion of each prompt by these weights, and what it is worth; None where this process shall go.

    with_kl: asks the reference too, where there is one.
    """
    rollout = clients.sample_held_out(rows, version)
    rewarded = clients.rewards(rollout) if rollout is not None else None
    if rollout is None or rewarded is None:
        return None
    reference = clients.reference(rollout) if with_kl else None
    return evaluated(rollout, rewarded[0], rewarded[1], reference if reference is not None and len(reference) else None)


def evaluated(
    rollout: Rollout, components: Mapping[str, Tensor], scores: Tensor, reference: Tensor | None
) -> Evaluated:
    """Means with intervals over completions, by name (alignment_api/contract/status.py).

    components: name -> (N,). scores: (N,). NaN of completions that a function has skipped, which are left out.
    reference: (tokens,) log-probs of the sampled tokens; None leaves KL out.
    kl: of a completion the mean over its tokens of k3, by the log-probs with which it was sampled.
    """
    prompts = [row.row for row, group in zip(rollout.rows, rollout.groups, strict=True) for _ in group.completions]
    values = {"reward": scores, "length": rollout.lengths} | {f"{COMPONENT}{k}": v for k, v in components.items()}
    if reference is not None:
        kl = kl_estimate(rollout.logprobs, padded(reference, rollout.mask), "k3") * rollout.mask
        values["kl"] = kl.sum(dim=1) / rollout.lengths
    found = {name: _mean(value, prompts) for name, value in values.items() if not value.isnan().all()}
    return found | {"finished": share_interval(rollout.finished.numpy().astype(np.float64), prompts)}


def _mean(values: Tensor, prompts: Sequence[int]) -> Interval:
    kept = [place for place, value in enumerate(values.tolist()) if not math.isnan(value)]
    return mean_interval(values[kept].numpy().astype(np.float64), [prompts[place] for place in kept])


def heldout_evaluator(
    rows: Sequence[PromptExample], clients: OnlineClients, reporter: Reporter
) -> Callable[[Position], None]:
    """What the loop calls at a checkpoint; collective. Raises Interrupted."""

    def evaluate(position: Position) -> None:
        figures = distributed.ask_first_rank(lambda: judge_held_out(rows, clients, position.version))
        if figures is None:
            raise Interrupted
        if distributed.rank() == 0:
            reporter.evaluated(position.step, figures)

    return evaluate
