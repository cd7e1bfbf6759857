"""Saving and restoring a run: the engine's state, every rank's random numbers and the position, as one commit."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from alignment_trainer.checkpoint.checkpoint import (
    Commit,
    DamagedCommitError,
    Part,
    commit_folder,
    prune,
    read_commit,
    seal_part,
    start_commit,
    verify,
    write_commit,
)
from alignment_trainer.engines.base import Engine
from alignment_trainer.engines.state import save_state
from alignment_trainer.process import distributed

POSITION = "position.json"


@dataclass(frozen=True)
class Position:
    """Where in the run we are; with the seed it decides which rows come next.

    step: steps done. tokens: packed so far, padding not counted.
    Of PPO and GRPO also: updates: optimizer steps done of the next step, whose experience lies beside the position.
    version: of the weights that servers sample with: the step that made them. kl_coef: of the adaptive controller.
    """

    step: int = 0
    tokens: int = 0
    updates: int = 0
    version: int = 0
    kl_coef: float = 0.0

    def after(self, tokens: int) -> "Position":
        return replace(self, step=self.step + 1, tokens=self.tokens + tokens, updates=0)


@dataclass
class Commits:
    """The commits of one attempt, under its epoch.

    keep: newest ones that stay. tidy: removes the others, given the epoch's folder and `keep`.
    others: writes what else belongs to a commit into its folder (a critic's state), on every rank; returns its parts.
    """

    checkpoints: Path
    epoch: int
    keep: int
    newest: Commit | None = None
    tidy: Callable[[Path, int], None] = prune
    others: Callable[[Path], list[Part]] = lambda folder: []

    def save(self, engine: Engine, position: Position) -> Commit:
        """Writes, reads back and commits; collective."""
        if self.newest is not None and (self.newest.step, self.newest.updates) == (position.step, position.updates):
            return self.newest
        folder = commit_folder(self.checkpoints, self.epoch, position.step, position.updates)
        if distributed.rank() == 0:
            start_commit(folder)
        distributed.barrier()
        written = _write_parts(folder, engine, position) + self.others(folder)
        parts = [part for parts in distributed.gather_objects(written) for part in parts]
        if distributed.rank() == 0:
            write_commit(folder, self.epoch, position.step, parts, position.updates)
            self.tidy(folder.parent, self.keep)
        distributed.barrier()
        self.newest = read_commit(folder)
        return self.newest


def _write_parts(folder: Path, engine: Engine, position: Position) -> list[Part]:
    paths = [save_state(engine, folder), folder / f"random-{distributed.rank():05d}.safetensors"]
    save_file(random_state(), paths[1])
    if distributed.rank() == 0:
        paths.append(folder / POSITION)
        paths[-1].write_text(json.dumps(asdict(position)))
    return [seal_part(path) for path in paths]


def restore(folder: Path, engine: Engine) -> Position:
    """Puts a verified commit's optimizer state and random numbers back and returns its position; collective.

    The weights were loaded before the engine was made. A rank that the commit does not know (there are more ranks now)
    keeps the random numbers it was seeded with.
    """
    engine.load(folder)
    random = folder / f"random-{distributed.rank():05d}.safetensors"
    if random.name in {part.name for part in read_commit(folder).parts}:
        set_random_state(load_file(random))
    return Position(**json.loads((folder / POSITION).read_text()))


def verify_together(folder: Path) -> Commit:
    """Rank 0 reads and checks every part; all ranks get the commit, or its DamagedCommitError."""
    commit, damage = distributed.from_first_rank(_try_verify(folder) if distributed.rank() == 0 else (None, None))
    if commit is None:
        raise damage or DamagedCommitError(f"{folder}: not verified")
    return commit


def _try_verify(folder: Path) -> tuple[Commit | None, DamagedCommitError | None]:
    try:
        return verify(folder), None
    except DamagedCommitError as error:
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
