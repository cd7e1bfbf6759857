"""An attempt goes on from the newest checkpoint that is whole, which it has read once to know that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from roles import TinyJob
from tiny_runs import Setting, tiny_run

from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.checkpoint.attempt import claim_attempt, find_start, make_checkpoints
from alignment_trainer.checkpoint.checkpoint import DamagedCheckpointError
from alignment_trainer.loop.build import Origin, Trainee, load_trainee
from alignment_trainer.loop.train import train
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard

CPU = torch.device("cpu")
STATE = "state-00000-of-00001.safetensors"


def attempt(folder: Path, life: int) -> tuple[Instance, Trainee]:
    """A process of role `policy` that has loaded what it starts from, at the job's own weights or a checkpoint's."""
    context = TinyJob(folder).context("policy", life=life)
    manifest = read_manifest((folder / "job.yaml").read_text())
    instance = Instance(context, manifest, StatusBoard(), Metrics("tiny", "policy"), Interruption())
    start = find_start(instance, claim := claim_attempt(instance))
    trainee = load_trainee(instance.spec, Origin(folder / "model"), start, CPU)
    run, _ = tiny_run(folder, Setting(steps=6, checkpoint_every=2), trainee.engine)
    run.checkpoints, run.position = make_checkpoints(instance, claim), trainee.position
    if life == 1:
        train(run)
    return instance, trainee


def flip_a_bit(part: Path) -> None:
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)


def cut_off(part: Path) -> None:
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size - 1)


def checkpoints(instance: Instance) -> list[Path]:
    """Newest first."""
    return sorted((Path(instance.storage) / "checkpoints" / "0001").iterdir(), reverse=True)


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_loaded(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = attempt(tmp_path, 1)
    damage(checkpoints(first)[0] / STATE)
    _, trainee = attempt(tmp_path, 2)
    assert (trainee.position.step, trainee.engine.steps) == (4, 4)
    assert f"00000006/{STATE}" in caplog.text


@pytest.mark.parametrize("damage", [flip_a_bit, cut_off])
def test_an_attempt_never_starts_afresh_where_every_checkpoint_is_damaged(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    first, _ = attempt(tmp_path, 1)
    for folder in checkpoints(first):
        damage(folder / STATE)
    with pytest.raises(DamagedCheckpointError, match="every checkpoint is damaged"):
        attempt(tmp_path, 2)
