"""Saving and restoring a run: the engine's state, every rank's random numbers and the position, as one checkpoint."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from alignment_trainer.algorithms.advantages import RunningMoments
from alignment_trainer.checkpoint.background import Background
from alignment_trainer.checkpoint.checkpoint import (
    Checkpoint,
    Part,
    Write,
    checkpoint_name,
    prune,
    write_checkpoint,
    write_parts,
)
from alignment_trainer.data.drafts import Draft, TensorDraft, TextDraft
from alignment_trainer.data.storage import Storage
from alignment_trainer.engines.base import Engine
from alignment_trainer.engines.state import draft_state
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
    """The checkpoints of one attempt, under its term; at most one of them is on its way.

    Every rank's part is copied between two steps, and written, hashed and sealed while the next ones are computed: the
    thread that writes has a group of ranks of its own.

    root: where the checkpoints of the job lie. keep: newest ones that stay. prune: removes the others, given where the
    term's lie and `keep`.
    fence: raises where a newer attempt has claimed; asked before a checkpoint is begun (a fenced writer takes no room
    from its successor) and again before it is sealed. What slips through in between is no ancestor of anything.
    extra_parts: takes a snapshot of what else belongs to the checkpoint of that name (a critic's state), on every
    rank.
    """

    root: Storage
    term: int
    keep: int
    newest: Checkpoint | None = None
    prune: Callable[[Storage, int], None] = prune
    fence: Callable[[], object] = lambda: None
    extra_parts: Callable[[str], Write] = lambda name: nothing_more
    _background: Background[Checkpoint] = field(default_factory=Background)

    def save(
        self, engine: Engine, position: Position, told: Callable[[Checkpoint], None] = lambda checkpoint: None
    ) -> None:
        """Takes a snapshot and returns while it is written; collective. What was saved before must have settled.

        Nothing to do where the position is that of the newest checkpoint. told: called on rank 0 as soon as it is
        sealed, by the thread that writes. Raises UserError for numbers that are not finite.
        """
        if self.newest_of(position) is not None:
            return
        name = checkpoint_name(self.term, position.step, position.updates)
        place = self.root.within(name)
        if distributed.rank() == 0:
            self.fence()
            place.delete("")  # what an interrupted attempt at the same checkpoint left
        distributed.barrier()
        drafts = [*draft_trainee(engine), *_draft_position(position)]
        writes = (lambda place: write_parts(place, drafts), self.extra_parts(name))
        self._background.start(lambda: self._write(place, position, writes, told))

    def newest_of(self, position: Position) -> Checkpoint | None:
        """The newest checkpoint, where it is that of a position."""
        newest = self.newest
        return newest if newest and (newest.step, newest.updates) == (position.step, position.updates) else None

    def is_writing(self) -> bool:
        """Whether this rank is still writing what was saved last; does not wait."""
        return self._background.is_running()

    def poll(self) -> Checkpoint | None:
        """What was saved, where it has been sealed since the last look; collective. Raises what ended its writing."""
        return self.settle() if self._background.is_done() else None

    def settle(self) -> Checkpoint | None:
        """The same once it is sealed; None where nothing is on its way. Raises what ended its writing."""
        sealed = self._background.result()
        self.newest = sealed or self.newest
        return sealed

    def close(self) -> Checkpoint | None:
        """As `settle`, for who leaves by an error: what ended the writing is logged alone."""
        return self._background.close()

    def _write(
        self, place: Storage, position: Position, writes: tuple[Write, ...], told: Callable[[Checkpoint], None]
    ) -> Checkpoint:
        written = self._background.together(lambda: [part for write in writes for part in write(place)])
        parts = [part for of_rank in written for part in of_rank]
        sealed = self._background.together(
            lambda: self._seal(place, position, parts) if distributed.rank() == 0 else None
        )
        checkpoint = next(checkpoint for checkpoint in sealed if checkpoint is not None)
        if distributed.rank() == 0:
            told(checkpoint)
        return checkpoint

    def _seal(self, place: Storage, position: Position, parts: list[Part]) -> Checkpoint:
        self.fence()
        checkpoint = write_checkpoint(place, self.term, position.step, parts, position.updates)
        self.prune(self.root.within(f"{self.term:04d}"), self.keep)
        return checkpoint


def nothing_more(place: Storage) -> list[Part]:
    """What is written of a checkpoint that holds nothing else."""
    return []


def draft_trainee(engine: Engine, prefix: str = "") -> list[Draft]:
    """A snapshot of this rank's part of a trainee: weights, moments, random numbers; collective.

    prefix: tells the files of two trainees in one checkpoint apart. Raises UserError for numbers that are not finite.
    """
    return [draft_state(engine, prefix), TensorDraft(_random_file(prefix), random_state())]


def _draft_position(position: Position) -> list[Draft]:
    return [TextDraft(POSITION, json.dumps(asdict(position)))] if distributed.rank() == 0 else []


def restore(folder: Path, engine: Engine, prefix: str = "") -> Position:
    """Puts a verified checkpoint's optimizer state and random numbers back and returns its position; collective.

    The weights were loaded before the engine was made. A rank that it does not know (there are more ranks now) keeps
    the random numbers it was seeded with.
    """
    engine.load(folder, prefix)
    random = _random_file(prefix)
    if (folder / random).is_file():
        set_random_state(load_file(folder / random))
    return Position.read(folder) if not prefix else Position()  # a critic follows its actor's


def _random_file(prefix: str) -> str:
    return f"{prefix}random-{distributed.rank():05d}.safetensors"


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
