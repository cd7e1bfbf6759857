"""Held-out figures: by the role `evaluator` after the export, and by the training loop on its way."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from alignment_api.algorithms import Algorithm
from alignment_api.context import Outcome
from alignment_api.status import Evaluated, EvaluationReport, Progress
from alignment_trainer.data.files import write_text_atomically
from alignment_trainer.data.packing import pair_group
from alignment_trainer.data.reference import Float32, evaluation_batches, policy_ranks, reference_cache
from alignment_trainer.data.store import Examples, open_prepared
from alignment_trainer.errors import UserError
from alignment_trainer.instance import Instance
from alignment_trainer.local_scorer import LocalScorer, sum_completions
from alignment_trainer.statistics import mean_interval, share_interval

log = logging.getLogger(__name__)

MODEL_FOLDER, REPORT_FILE = "model", "evaluation.json"


def run(instance: Instance) -> Outcome:
    """Scores the exported model on the held-out rows and writes evaluation.json beside it."""
    prepared, training = open_prepared(instance.storage), instance.spec.training
    reference = reference_cache(prepared, training).read("evaluation", len(prepared.evaluation))
    instance.board.update(state="loading the exported model", ready=True)
    scorer = LocalScorer(
        _exported_model(instance), instance.context.gpus, training.precision, training.micro_batch_tokens
    )
    try:
        with instance.metrics.phase("evaluate"):
            after = _score(instance, scorer, prepared.evaluation)
    finally:
        scorer.close()
    if after is None:
        return Outcome(result="interrupted")
    beta, prompts = beta_of(instance.spec.algorithm), _prompts(prepared.evaluation)
    report = EvaluationReport(
        before=evaluated(reference, reference, beta, prompts), after=evaluated(after, reference, beta, prompts)
    )
    write_text_atomically(instance.output / REPORT_FILE, report.model_dump_json(indent=1))
    instance.board.update(state="evaluated", metrics={"heldout_accuracy": report.after["accuracy"].value})
    log.info("evaluated", extra=report.model_dump(mode="json"))
    return Outcome(result="succeeded", evaluation=report)


def evaluated(logprobs: Float32, reference: Float32, beta: float, prompts: Sequence[Hashable]) -> Evaluated:
    """Held-out figures of a policy.

    logprobs, reference: (pairs, 2) summed log-probs (nats), chosen then rejected. beta: of the implicit reward
    beta (log pi - log ref). prompts: (pairs,) what the pairs of one prompt share; intervals allow for it.
    """
    policy, frozen = (values.astype(np.float64) for values in (logprobs, reference))
    ratio = policy - frozen
    margin = beta * (ratio[:, 0] - ratio[:, 1])
    return {
        "accuracy": share_interval(_positive(margin), prompts),
        "margin": mean_interval(margin, prompts),
        "likelierChosen": share_interval(_positive(policy[:, 0] - policy[:, 1]), prompts),
    }


def heldout_evaluator(
    examples: Examples, reference: Float32, algorithm: Algorithm, score: Callable[[], Float32]
) -> Callable[[], Evaluated]:
    """What the training loop calls at a checkpoint. score: (pairs, 2) by the policy as it is now; collective."""
    beta, prompts = beta_of(algorithm), _prompts(examples)
    return lambda: evaluated(score(), reference, beta, prompts)


def _positive(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 above zero, 0 below, a half for a tie."""
    return (np.sign(values) + 1) / 2


def _prompts(examples: Examples) -> list[tuple[int, ...]]:
    return [example.prompt for example in examples]


def beta_of(algorithm: Algorithm) -> float:
    """The strength of the implicit reward. Raises UserError for an algorithm without one."""
    if algorithm.dpo is None:
        raise UserError("UnsupportedAlgorithm", f"spec.algorithm.{algorithm.name}: has no implicit reward to evaluate")
    return algorithm.dpo.beta


def _exported_model(instance: Instance) -> Path:
    folder = instance.output / MODEL_FOLDER
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder}: no exported model; stage `train` has not finished here")
    return folder


def _score(instance: Instance, scorer: LocalScorer, examples: Examples) -> Float32 | None:
    """(pairs, 2), batch by batch; None where this process was asked to go."""
    instance.board.update(state="scoring held-out rows")
    sums: list[Float32] = []
    for batch in evaluation_batches(len(examples), instance.spec.training):
        if instance.stop():
            return None
        groups = [pair_group(examples[index]) for index in batch]
        logprobs = scorer.token_logprobs(groups, policy_ranks(instance.spec))
        sums += [sum_completions(group, values) for group, values in zip(groups, logprobs, strict=True)]
        instance.metrics.set("rows", len(sums))
        instance.board.update(progress=Progress(step=len(sums), total_steps=len(examples)))
    return np.stack(sums)
