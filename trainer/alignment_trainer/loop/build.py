"""Puts a run together from the spec and what lies on disk."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.learning_rate import learning_rate_of
from alignment_api.derived.micro_batch import tokens_of
from alignment_api.derived.sharding import sharding_of
from alignment_trainer.algorithms import make_algorithm
from alignment_trainer.algorithms.schedule import WarmupCosine
from alignment_trainer.checkpoint.attempt import Start
from alignment_trainer.checkpoint.run_state import Checkpoints, Position, restore
from alignment_trainer.data.examples import Example
from alignment_trainer.data.sampler import Groups, Sampler
from alignment_trainer.engines import ENGINES, Engine, OptimizerOptions
from alignment_trainer.engines.scoring import score_sequences
from alignment_trainer.engines.state import SavedState
from alignment_trainer.loop.offline import Learner, LoopOptions, Run, RunHooks, TrainingRows
from alignment_trainer.model.load import LoadedModel, adapted
from alignment_trainer.model.tasks import LANGUAGE, ModelTask
from alignment_trainer.model.weights import Weights
from alignment_trainer.process import distributed


@dataclass(frozen=True)
class Trainee:
    """A model that is trained, where it left off."""

    model: LoadedModel
    engine: Engine
    position: Position


@dataclass(frozen=True)
class Origin:
    """What a trainee is made of. model: its folder. prefix: of its files in a checkpoint that it shares."""

    model: Path
    task: ModelTask = LANGUAGE
    prefix: str = ""


def load_trainee(spec: AlignmentJobSpec, origin: Origin, start: Start | None, device: torch.device) -> Trainee:
    """The model as it came, as this job's checkpoint left it, or with another job's weights; collective.

    Seeds this rank's random numbers. start: verified where it was found; each rank reads its slice of it.
    """
    training, prefix = spec.training, origin.prefix
    model = origin.task.outline(origin.model, spec)
    if training.lora is not None:
        model = adapted(model, training.lora, spec.model.source, training.seed)
    weights: Weights = model.weights
    if start is not None:
        weights = model.restored(SavedState(start.folder, prefix).weights)
    make_engine = ENGINES[sharding_of(training, distributed.world_size())]
    engine = make_engine(model.scorer, OptimizerOptions.of(training), training.precision, device, weights)
    torch.manual_seed(training.seed * 1_000_003 + distributed.rank())
    resumes = start is not None and start.resumes
    return Trainee(model, engine, restore(start.folder, engine, prefix) if start and resumes else Position())


def make_sampler(spec: AlignmentJobSpec, rows: int, groups: Groups | None = None) -> Sampler:
    return Sampler(rows, spec.training.batch_size, spec.training.seed, groups)


def score_rows(
    spec: AlignmentJobSpec,
    engine: Engine,
    examples: Sequence[Example],
    leave_if_asked: Callable[[], None] = lambda: None,
) -> Tensor:
    """What the algorithm calls scores, (rows, completions); collective."""
    algorithm, micro_tokens = make_algorithm(spec.algorithm), tokens_of(spec.training)
    groups = [algorithm.group(example) for example in examples]
    return score_sequences(engine.forward, algorithm.task.pack, groups, micro_tokens, leave_if_asked)


def loop_options(spec: AlignmentJobSpec, total_steps: int) -> LoopOptions:
    """How much at once, how often and how long."""
    training, every = spec.training, spec.checkpoint.every_steps
    return LoopOptions(
        micro_tokens=tokens_of(training),
        total_steps=total_steps,
        learning_rate=WarmupCosine(learning_rate_of(spec).value, total_steps, training.warmup_fraction),
        checkpoint_every=every,
        evaluate_every=spec.data.evaluation.every_steps or every,
    )


def make_run(
    spec: AlignmentJobSpec, policy: Trainee, rows: TrainingRows, checkpoints: Checkpoints, hooks: RunHooks
) -> Run:
    """The run from the policy's position to the last step."""
    total_steps = rows.sampler.total_steps(spec.training.epochs, spec.training.max_steps)
    return Run(
        learner=Learner(policy.engine, make_algorithm(spec.algorithm)),
        rows=rows,
        options=loop_options(spec, total_steps),
        checkpoints=checkpoints,
        hooks=hooks,
        position=policy.position,
    )
