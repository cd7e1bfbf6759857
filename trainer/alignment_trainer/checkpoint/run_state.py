"""Saving and restoring a run: the engine's state, every rank's random numbers and the position, as one checkpoint."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment_trainer.algorithms.advantages import RunningMoments
from alignment_trainer.checkpoint.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    Part,
    checkpoint_folder,
    prune,
    read_checkpoint,
    seal_part,
    start_checkpoint,
    verify,
    write_checkpoint,
)
from alignment_trainer.engines.base import Engine
from alignment_trainer.engines.state import save_state
from alignment_trainer.process import distributed

POSITION = "position.json"


@dataclass(frozen=True)
class Skips:
    """Optimizer steps that were not applied because something in them was not finite.

    steps: tried so far. skipped: of those. in_a_row: of those, the last ones, one after the other.
    """

    steps: int = 0
    skipped: int = 0
    in_a_row: int = 0

    def after(self, skipped: bool) -> "Skips":
        """One more step."""
        return Skips(self.steps + 1, self.skipped + skipped, self.in_a_row + 1 if skipped else 0)


@dataclass(frozen=True)
class Position:
    """Where in the run we are; with the seed it decides which rows come next.

    step: steps done. tokens: packed so far, padding not counted. skips: what was not applied so far.
    Of PPO and GRPO also: updates: optimizer steps done of the next step, whose experience lies beside the position.
    version: of the weights that servers sample with: the step that made them. kl_coef: of the adaptive controller.
    scores: of all completions so far, where what the critic learns is divided by their deviation.
    """

    step: int = 0
    tokens: int = 0
    updates: int = 0
    version: int = 0
    kl_coef: float = 0.0
    skips: Skips = Skips()
    scores: RunningMoments = field(default_factory=RunningMoments)

    @classmethod
    def read(cls, folder: Path) -> "Position":
        """Of a checkpoint."""
        fields = json.loads((folder / POSITION).read_text())
        skips, scores = Skips(**fields.get("skips", {})), RunningMoments(**fields.get("scores", {}))
        return cls(**fields | {"skips": skips, "scores": scores})

    def after(self, tokens: int) -> "Position":
        return replace(self, step=self.step + 1, tokens=self.tokens + tokens, updates=0)


@dataclass
class Checkpoints:
    """The checkpoints of one attempt, under its term.

    keep: newest ones that stay. prune: removes the others, given the term's folder and `keep`.
    fence: raises where a newer attempt has claimed; asked before a checkpoint is begun (a fenced writer takes no room
    from its successor) and again before it is sealed. What slips through in between is no ancestor of anything.
    extra_parts: writes what else belongs to a checkpoint (a critic's state), on every rank; returns its parts.
    """

    root: Path
    term: int
    keep: int
    newest: Checkpoint | None = None
    prune: Callable[[Path, int], None] = prune
    fence: Callable[[], object] = lambda: None
    extra_parts: Callable[[Path], list[Part]] = lambda folder: []

    def save(self, engine: Engine, position: Position) -> Checkpoint:
        """Writes, reads back and seals; collective."""
        if self.newest is not None and (self.newest.step, self.newest.updates) == (position.step, position.updates):
            return self.newest
        folder = checkpoint_folder(self.root, self.term, position.step, position.updates)
        if distributed.rank() == 0:
            self.fence()
            start_checkpoint(folder)
        distributed.barrier()
        written = write_state(engine, folder) + _write_position(position, folder) + self.extra_parts(folder)
        parts = [part for parts in distributed.gather_objects(written) for part in parts]
        if distributed.rank() == 0:
            self.fence()
            write_checkpoint(folder, self.term, position.step, parts, position.updates)
            self.prune(folder.parent, self.keep)
        distributed.barrier()
        self.newest = read_checkpoint(folder)
        return self.newest


def write_state(engine: Engine, folder: Path, prefix: str = "") -> list[Part]:
    """This rank's part of a trainee: weights, moments, random numbers; collective.

    prefix: tells the files of two trainees in one checkpoint apart. Raises UserError for numbers that are not finite.
    """
    random = _random_file(folder, prefix)
    save_file(random_state(), random)
    return [seal_part(save_state(engine, folder, prefix)), seal_part(random)]


def _write_position(position: Position, folder: Path) -> list[Part]:
    if distributed.rank() != 0:
        return []
    (folder / POSITION).write_text(json.dumps(asdict(position)))
    return [seal_part(folder / POSITION)]


def restore(folder: Path, engine: Engine, prefix: str = "") -> Position:
    """Puts a verified checkpoint's optimizer state and random numbers back and returns its position; collective.

    The weights were loaded before the engine was made. A rank that it does not know (there are more ranks now) keeps
    the random numbers it was seeded with.
    """
    engine.load(folder, prefix)
    random = _random_file(folder, prefix)
    if random.name in {part.name for part in read_checkpoint(folder).parts}:
        set_random_state(load_file(random))
    return Position.read(folder) if not prefix else Position()  # a critic follows its actor's


def _random_file(folder: Path, prefix: str) -> Path:
    return folder / f"{prefix}random-{distributed.rank():05d}.safetensors"


def verify_together(folder: Path) -> Checkpoint:
    """Rank 0 reads and checks every part; all ranks get the checkpoint, or its DamagedCheckpointError."""
    checkpoint, damage = distributed.ask_first_rank(lambda: _try_verify(folder))
    if checkpoint is None:
        raise damage or DamagedCheckpointError(f"{folder}: not verified")
    return checkpoint


def _try_verify(folder: Path) -> tuple[Checkpoint | None, DamagedCheckpointError | None]:
    try:
        return verify(folder), None
    except DamagedCheckpointError as error:
        return None, error


def random_state() -> dict[str, Tensor]:
    """Of this rank's generators."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
