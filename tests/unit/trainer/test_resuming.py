"""An attempt goes on from the newest checkpoint that is whole, which it has read once to know that."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attempts import Combination, Figures, begin, figures_of
from ranks import run_ranks

from alignment_api.contract.context import Context
from alignment_trainer.checkpoint.checkpoint import DamagedCheckpointError
from alignment_trainer.loop.train import train
from alignment_trainer.process import distributed

STEPS, EVERY = 6, 2
COMBINATIONS = [
    Combination("dpo"),
    Combination("dpo", lora=True),
    Combination("reward", "fsdp2", 2),
    Combination("dpo", "fsdp2", 2, lora=True),
    Combination("dpo", "zero2", 2),
    Combination("dpo", "zero3", 2),
]
FILES = {
    ranks: {
        "manifest.json",
        "position.json",
        *(f"random-{rank:05d}.safetensors" for rank in range(ranks)),
        *(f"state-{rank:05d}-of-{ranks:05d}.safetensors" for rank in range(ranks)),
    }
    for ranks in (1, 2)
}
"""Of a checkpoint, by the ranks that wrote it."""


def flip_a_bit(part: Path) -> None:
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)


def cut_off(part: Path) -> None:
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size - 1)


DAMAGES: dict[str, Callable[[Path], None]] = {"flipped": flip_a_bit, "cut off": cut_off}


def context_of(folder: Path, combination: Combination) -> Context:
    return combination.job(folder, STEPS, EVERY).context("policy")


def of_storage(context: Context, storage: Path, life: int) -> Context:
    """Another attempt, on another storage."""
    return context.model_copy(update={"storage": str(storage), "life": life})


def checkpoints(context: Context) -> list[Path]:
    """Newest first."""
    return sorted(Path(f"{context.storage}/checkpoints/0001").iterdir(), reverse=True)


class Told(logging.Handler):
    """What the log of this process warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.getMessage()}\n"


def damaged_in_turn(context: str) -> dict[str, Any]:
    """Trains, and goes on with each file of the newest checkpoint damaged in each way; what came of it, on rank 0."""
    first = Context.model_validate_json(context)
    train(begin(first)[0])
    files = distributed.from_first_rank([path.name for path in checkpoints(first)[0].iterdir()])
    return {f"{file} {name}": _go_on(first, file, name) for file in files for name in DAMAGES}


def _go_on(first: Context, file: str, damage: str) -> Any:
    """The step it started from, what it warned of, and its figures."""
    context = of_storage(first, Path(f"{first.storage}-{file}-{damage}"), life=2)
    if distributed.rank() == 0:
        shutil.copytree(str(first.storage), str(context.storage))
        DAMAGES[damage](checkpoints(context)[0] / file)
    distributed.barrier()
    logging.getLogger().addHandler(told := Told())
    run, start = begin(context)
    train(run)
    logging.getLogger().removeHandler(told)
    return start and start.step, told.text, figures_of(context)


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_whichever_file_of_the_newest_checkpoint_is_damaged_it_is_named_and_the_one_before_is_gone_on_from(
    tmp_path: Path, combination: Combination
) -> None:
    """With the same figures, to the bit."""
    context = context_of(tmp_path, combination)
    found = run_ranks(combination.ranks, "test_resuming:damaged_in_turn", context=context.model_dump_json())[0]
    assert found.keys() == {f"{file} {damage}" for file in FILES[combination.ranks] for damage in DAMAGES}
    whole = figures_of(context)
    for what, (step, warned, figures) in found.items():
        file, _, _ = what.partition(" ")
        assert f"00000006/{file}" in warned or (file == "manifest.json" and "00000006: the manifest" in warned), what
        assert (step, figures) == (4, {5: whole[5], 6: whole[6]}), what


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_attempt_never_starts_afresh_where_every_checkpoint_is_damaged(tmp_path: Path, damage: str) -> None:
    context = context_of(tmp_path, Combination("dpo"))
    train(begin(context)[0])
    for folder in checkpoints(context):
        DAMAGES[damage](folder / "state-00000-of-00001.safetensors")
    with pytest.raises(DamagedCheckpointError, match="every checkpoint is damaged"):
        begin(of_storage(context, Path(str(context.storage)), life=2))


SHARDED = [combination for combination in COMBINATIONS if combination.ranks == 2]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> dict[Combination, tuple[Figures, list[Figures]]]:
    """A run on two ranks, and the same on two, one and two again: each attempt's figures, a third of the steps each."""
    folder = tmp_path_factory.mktemp("moved")
    wholes = {combination: context_of(folder / str(combination), combination) for combination in SHARDED}
    lives = {
        combination: [of_storage(whole, folder / str(combination) / "moved", life) for life in (1, 2, 3)]
        for combination, whole in wholes.items()
    }
    undisturbed = [(whole.model_dump_json(), None) for whole in wholes.values()]
    for life, (ranks, leave_after) in enumerate([(2, 2), (1, 4), (2, None)]):
        of_life = [(each[life].model_dump_json(), leave_after) for each in lives.values()]
        run_ranks(ranks, "attempts:in_turn", lives=(undisturbed if life == 0 else []) + of_life)
    return {
        combination: (figures_of(whole), [figures_of(context) for context in lives[combination]])
        for combination, whole in wholes.items()
    }


@pytest.mark.parametrize("combination", SHARDED, ids=str)
def test_from_two_ranks_to_one_and_back_the_losses_stay_those_of_two(moved, combination: Combination) -> None:
    whole, lives = moved[combination]
    assert [list(figures) for figures in lives] == [[1, 2], [3, 4], [5, 6]]
    found = [figures["loss"] for life in lives for figures in life.values()]
    assert found == pytest.approx([figures["loss"] for figures in whole.values()], rel=1e-5)
