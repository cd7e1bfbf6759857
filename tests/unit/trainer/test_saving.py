"""A checkpoint is a snapshot that is written beside the next steps, and counts once it is sealed."""

from __future__ import annotations

import errno
import hashlib
import os
import queue
import signal
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from roles import forkserver
from safetensors import safe_open
from tiny_runs import Recorder, Setting, tiny_run

from alignment_trainer.checkpoint.checkpoint import Checkpoint, Part, Write, list_checkpoints, verify, write_parts
from alignment_trainer.checkpoint.claims import claim_term, remove_unfinished, start_of
from alignment_trainer.checkpoint.run_state import Checkpoints, nothing_more
from alignment_trainer.data.drafts import TensorDraft
from alignment_trainer.data.storage import Folder, Storage
from alignment_trainer.engines.base import Engine, ParameterState
from alignment_trainer.loop.offline import Interrupted, Run, StepReport
from alignment_trainer.loop.train import train
from alignment_trainer.process.errors import failure_of
from alignment_trainer.roles.critic import CriticInbox

pytestmark = pytest.mark.timeout(300)

PATIENCE = 120.0
"""Seconds after which what never comes is given up."""


class Held(torch.Tensor):
    """Gives nobody its bytes, to hash or to write, before it is released."""

    released: threading.Event

    def reshape(self, *shape: int) -> torch.Tensor:  # type: ignore[override]
        assert self.released.wait(PATIENCE), "the training thread waits for what is hashed and written"
        return self.as_subclass(torch.Tensor).reshape(*shape)


def hold(engine: Engine, released: threading.Event, events: list[str] | None = None) -> None:
    """Lets the engine give `Held` tensors away. events: gets a word at each snapshot."""
    full_state = engine.full_state

    def held() -> Iterator[tuple[str, ParameterState | None]]:
        if events is not None:
            events.append("snapshot")
        for name, state in full_state():
            assert state is not None
            weight = state.weight.as_subclass(Held)
            weight.released = released
            yield name, replace(state, weight=weight)

    engine.full_state = held  # type: ignore[method-assign]


class Releasing(Recorder):
    """Lets what is held be written once a step is done."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.released = step, threading.Event()
        self.told_before: list[int] = []

    def stepped(self, report: StepReport) -> None:
        super().stepped(report)
        if report.step == self.step:
            self.told_before = [checkpoint.step for checkpoint in self.checkpoints]
            self.released.set()


def held_run(folder: Path, until: int, setting: Setting) -> tuple[Run, Releasing]:
    run, _ = tiny_run(folder, setting)
    observer = Releasing(until)
    run.hooks = replace(run.hooks, observer=observer)
    hold(run.engine, observer.released)
    return run, observer


class Waiting(Checkpoints):
    """Writes nothing of a snapshot before the training thread waits for it."""

    def __init__(self, root: Path, engine: Engine) -> None:
        super().__init__(Folder(root), term=1, keep=9)
        self.released, self.events = threading.Event(), list[str]()
        hold(engine, self.released, self.events)

    def settle(self) -> Checkpoint | None:
        self.released.set()
        sealed = super().settle()
        self.released.clear()
        if sealed is not None:
            self.events.append("sealed")
        return sealed


def test_the_training_thread_computes_on_while_nothing_is_hashed_or_written_yet(tmp_path: Path) -> None:
    run, observer = held_run(tmp_path, 5, Setting(steps=6, checkpoint_every=3))
    train(run)
    assert observer.told_before == []
    assert [checkpoint.step for checkpoint in observer.checkpoints] == [3, 6]


def test_a_save_that_meets_another_on_its_way_waits_with_its_snapshot_and_says_so(tmp_path: Path) -> None:
    """So that a rank holds one snapshot at most."""
    run, recorder = tiny_run(tmp_path, Setting(steps=3, checkpoint_every=1))
    run.checkpoints = checkpoints = Waiting(tmp_path, run.engine)
    train(run)
    assert checkpoints.events == ["snapshot", "sealed"] * 3
    assert recorder.waits == [False, True, True]


def test_asked_to_go_in_the_middle_of_a_write_it_seals_that_one_and_then_its_own(tmp_path: Path) -> None:
    asked = iter([False] * 3)
    run, recorder = tiny_run(tmp_path, Setting(checkpoint_every=2, micro_tokens=10**6), stop=lambda: next(asked, True))
    run.checkpoints = checkpoints = Waiting(tmp_path, run.engine)
    with pytest.raises(Interrupted):
        train(run)
    assert checkpoints.events == ["snapshot", "sealed"] * 2
    assert [checkpoint.step for checkpoint in recorder.checkpoints] == [2, 3]
    assert recorder.waits == [False, True]


def test_a_checkpoint_is_told_though_the_next_step_never_ends(tmp_path: Path) -> None:
    """A step of PPO may wait long for others, and so would the status."""
    run, _ = tiny_run(tmp_path, Setting())
    told: queue.SimpleQueue[int] = queue.SimpleQueue()
    run.hooks.observer.saved = lambda checkpoint: told.put(checkpoint.step)  # type: ignore[method-assign]
    run.save()
    assert told.get(timeout=PATIENCE) == 0
    run.close()


def test_what_is_written_is_the_state_of_the_step_that_was_saved(tmp_path: Path) -> None:
    """Written while steps 3 and 4 change the weights: byte for byte what a run that ends with step 2 saves."""
    late, _ = held_run(tmp_path / "late", 4, Setting(steps=5, checkpoint_every=2, learning_rate=1e-2))
    train(late)
    early, _ = tiny_run(tmp_path / "early", Setting(steps=5, checkpoint_every=2, learning_rate=1e-2))
    for batch in early.batches():
        for micro in batch.micros:
            early.engine.backward(early.loss(micro))
        early.finish(batch)
        if batch.step == 1:
            early.save()
            early.settle()
            break
    early.close()
    parts = [
        {part.name: part for part in verify(Folder(tmp_path / kind / "0001" / "00000002")).parts}
        for kind in ("late", "early")
    ]
    for name in ("state-00000-of-00001.safetensors", "position.json"):
        assert parts[0][name] == parts[1][name]


def full_disk(_: object = None) -> list[Part]:
    raise OSError(errno.ENOSPC, "No space left on device")


NAME = uuid.UUID(int=7)


def fill_disk(folder: Path) -> None:
    """Linux's own full disk stands where the state shall be written, until it is whole."""
    folder.mkdir(parents=True)
    (folder / f".state-00000-of-00001.safetensors.{NAME.hex}").symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a full disk to write to")
def test_a_failed_write_ends_the_run_by_name_and_seals_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uuid.uuid4", lambda: NAME)
    run, recorder = tiny_run(tmp_path, Setting(steps=6, checkpoint_every=2))

    def extra_parts(name: str) -> Write:
        fill_disk(tmp_path / name)
        return nothing_more

    run.checkpoints.extra_parts = extra_parts
    with pytest.raises(OSError, match="No space left") as error:
        train(run)
    assert failure_of(error.value).reason == "StorageFull"
    assert recorder.checkpoints == []
    assert list_checkpoints(Folder(tmp_path / "0001")) == []


def test_a_write_that_fails_on_one_rank_ends_all_of_them_by_the_same_name(tmp_path: Path) -> None:
    found = run_ranks(2, "test_saving:fail_on_rank_1", folder=str(tmp_path))
    assert found == ["StorageFull", "StorageFull"]
    assert list(tmp_path.rglob("manifest.json")) == []


def fail_on_rank_1(folder: str) -> str:
    from alignment_trainer.process import distributed

    run, _ = tiny_run(Path(folder), Setting(sharding="zero2", steps=4, checkpoint_every=2))
    run.checkpoints.extra_parts = lambda _: full_disk if distributed.rank() == 1 else nothing_more
    with pytest.raises(OSError) as error:  # noqa: PT011 (its name is what is returned)
        train(run)
    return failure_of(error.value).reason


def test_an_error_in_a_later_step_loses_no_checkpoint_that_is_on_its_way(tmp_path: Path) -> None:
    run, observer = held_run(tmp_path, 3, Setting(steps=6, checkpoint_every=2))

    def fail(step: int) -> None:
        raise RuntimeError(f"step {step} failed")

    run.hooks = replace(run.hooks, evaluate=fail)
    run.options = replace(run.options, evaluate_every=3)
    with pytest.raises(RuntimeError, match="step 3 failed"):
        train(run)
    term = Folder(tmp_path / "0001")
    assert [verify(term.within(name)).step for name in list_checkpoints(term)] == [2]
    assert [checkpoint.step for checkpoint in observer.checkpoints] == [2]


def test_killed_in_the_middle_of_a_write_the_next_attempt_has_the_former_checkpoint_and_no_orphan(
    tmp_path: Path,
) -> None:
    storage = Folder(tmp_path)
    claim_term(storage, "job", attempt=1)
    killed = forkserver.Process(target=train_and_die, args=(tmp_path,))
    killed.start()
    killed.join(PATIENCE)
    assert killed.exitcode == -signal.SIGKILL
    term = tmp_path / "checkpoints" / "0001"
    assert sorted(folder.name for folder in term.iterdir()) == ["00000002", "00000004"]
    claim = claim_term(storage, "job", attempt=2)
    assert start_of(storage, claim) == Folder(term / "00000002")
    remove_unfinished(storage, claim.term)
    assert [folder.name for folder in term.iterdir()] == ["00000002"]


def train_and_die(storage: Path) -> None:
    run, _ = tiny_run(storage / "checkpoints", Setting(steps=6, checkpoint_every=2))
    run.checkpoints.extra_parts = lambda name: die if name == "0001/00000004" else nothing_more
    train(run)


def die(_: Storage) -> list[Part]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def test_a_critic_that_cannot_write_its_part_ends_by_that_reason() -> None:
    inbox = CriticInbox(attempt=1, patience=1.0)
    inbox.writing.start(full_disk)
    with pytest.raises(OSError, match="No space left"):
        inbox.next(lambda: False)
    inbox.writing.close()


def test_a_part_is_hashed_while_it_is_written_and_is_read_by_safetensors(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.randn(3000, 1500),  # more than is written at once
        "half": torch.randn(5).bfloat16(),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
        "ids": torch.arange(7, dtype=torch.int32),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "flags": torch.tensor([True, False]),
    }
    [part] = write_parts(Folder(tmp_path), [TensorDraft("part.safetensors", tensors, {"steps": "7"})])
    content = (tmp_path / part.name).read_bytes()
    assert (part.bytes, part.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    with safe_open(tmp_path / part.name, framework="pt") as file:
        assert file.metadata() == {"steps": "7"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert file.get_tensor(name).dtype == tensor.dtype
            assert torch.equal(file.get_tensor(name), tensor), name
