"""An attempt whose successor has claimed the storage leaves nothing there that looks like a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from roles import TinyJob
from tiny_runs import Setting, tiny_run

from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.checkpoint.attempt import claim_attempt, make_checkpoints
from alignment_trainer.checkpoint.checkpoint import Part
from alignment_trainer.checkpoint.claims import FencedError, checkpoints_of, claim_term
from alignment_trainer.data.storage import Storage, storage_of
from alignment_trainer.loop.offline import Run
from alignment_trainer.loop.train import train
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard


def first_attempt(folder: Path) -> tuple[Run, Instance]:
    """A run of six steps that saves after every second, as attempt 1."""
    context = TinyJob(folder).context("policy")
    manifest = read_manifest((folder / "job.yaml").read_text())
    instance = Instance(context, manifest, StatusBoard(), Metrics("tiny", "policy"), Interruption())
    run, _ = tiny_run(folder, Setting(steps=6, checkpoint_every=2))
    run.checkpoints = make_checkpoints(instance, claim_attempt(instance))
    return run, instance


def claim_again(instance: Instance) -> None:
    claim_term(storage_of(instance), instance.context.uid, instance.context.life + 1)


def test_a_fenced_attempt_begins_no_checkpoint(tmp_path: Path) -> None:
    run, instance = first_attempt(tmp_path)

    def claim_after_step_3(step: int) -> None:
        if step == 3:
            claim_again(instance)

    run.hooks = replace(run.hooks, evaluate=claim_after_step_3)
    run.options = replace(run.options, evaluate_every=1)
    with pytest.raises(FencedError, match="term 1 is over: attempt 2 has claimed term 2"):
        train(run)
    begun = {name.rpartition("/")[0] for name in checkpoints_of(storage_of(instance)).begun()}
    assert begun == {"0001/00000002"}


def test_a_checkpoint_during_which_a_successor_claims_is_not_sealed(tmp_path: Path) -> None:
    run, instance = first_attempt(tmp_path)

    def claim_meanwhile(_: Storage) -> list[Part]:
        claim_again(instance)
        return []

    run.checkpoints.extra_parts = lambda name: claim_meanwhile
    with pytest.raises(FencedError, match="term 1 is over"):
        train(run)
    assert not any("manifest.json" in name for name in checkpoints_of(storage_of(instance)).list(""))
