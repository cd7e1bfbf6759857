"""Puts a run together from the spec and what lies on disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alignment_api.spec import AlignmentJobSpec
from alignment_trainer.algorithms import make_algorithm
from alignment_trainer.algorithms.schedule import WarmupCosine
from alignment_trainer.checkpoint.run_state import Checkpoints, Position, restore, verify_together
from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.engines import ENGINES, Engine, OptimizerOptions
from alignment_trainer.engines.scoring import score_sequences
from alignment_trainer.engines.state import load_weights
from alignment_trainer.loop.offline import Data, LoopOptions, Observer, Run
from alignment_trainer.model.load import LoadedModel
from alignment_trainer.model.tasks import LANGUAGE, ModelTask
from alignment_trainer.process import distributed


@dataclass(frozen=True)
class Policy:
    """The trainee, where it left off."""

    model: LoadedModel
    engine: Engine
    position: Position


@dataclass(frozen=True)
class RunServices:
    """What a run saves to, tells and asks.

    evaluate: scores the held-out rows at a step; called on every rank. stop: whether this process shall go.
    """

    checkpoints: Checkpoints
    observer: Observer
    evaluate: Callable[[int], None]
    stop: Callable[[], bool]


def sharding_of(spec: AlignmentJobSpec, ranks: int) -> str:
    """The engine: as the spec says, else `none` for one rank and `zero3` for more.

    Raises ValueError for several ranks without sharding.
    """
    sharding = spec.training.sharding or ("none" if ranks == 1 else "zero3")
    if sharding == "none" and ranks > 1:
        raise ValueError(
            f"spec.training.sharding: `none` is for one rank, found {ranks}; write zero2 or zero3, or leave it out"
        )
    return sharding


def make_policy(
    spec: AlignmentJobSpec, model_folder: Path, start: Path | None, device: torch.device, task: ModelTask = LANGUAGE
) -> Policy:
    """The model of `model_folder`, or as the checkpoint in `start` left it; collective.

    Seeds this rank's random numbers. Raises DamagedCheckpointError where `start` does not verify.
    """
    training, rank = spec.training, distributed.rank()
    model = task.load(model_folder, spec)
    if start is not None:
        verify_together(start)
        load_weights(model.scorer, start)
    make_engine = ENGINES[sharding_of(spec, distributed.world_size())]
    engine = make_engine(model.scorer, OptimizerOptions.of(training), training.precision, device)
    torch.manual_seed(training.seed * 1_000_003 + rank)
    return Policy(model, engine, restore(start, engine) if start is not None else Position())


def make_sampler(spec: AlignmentJobSpec, rows: int) -> Sampler:
    return Sampler(rows, spec.training.batch_size, spec.training.seed)


def score_rows(spec: AlignmentJobSpec, engine: Engine, examples: Sequence[PreferenceExample]) -> Tensor:
    """What the algorithm calls scores, (rows, completions); collective."""
    algorithm = make_algorithm(spec.algorithm)
    groups = [algorithm.group(example) for example in examples]
    return score_sequences(engine.forward, algorithm.task.pack, groups, spec.training.micro_batch_tokens)


def loop_options(spec: AlignmentJobSpec, total_steps: int) -> LoopOptions:
    """How much at once, how often and how long."""
    training, every = spec.training, spec.checkpoint.every_steps
    return LoopOptions(
        micro_tokens=training.micro_batch_tokens,
        total_steps=total_steps,
        learning_rate=WarmupCosine(training.learning_rate, total_steps, training.warmup_fraction),
        checkpoint_every=every,
        evaluate_every=spec.data.evaluation.every_steps or every,
    )


def make_run(spec: AlignmentJobSpec, policy: Policy, data: Data, services: RunServices) -> Run:
    """The run from the policy's position to the last step."""
    sampler = make_sampler(spec, len(data.examples))
    return Run(
        engine=policy.engine,
        algorithm=make_algorithm(spec.algorithm),
        data=data,
        sampler=sampler,
        options=loop_options(spec, sampler.total_steps(spec.training.epochs, spec.training.max_steps)),
        checkpoints=services.checkpoints,
        observer=services.observer,
        evaluate=services.evaluate,
        stop=services.stop,
        position=policy.position,
    )
