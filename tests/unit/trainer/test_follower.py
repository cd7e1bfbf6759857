"""A server follows the weights of whoever trains, through damage, silence and half-applied updates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import torch
from roles import TinyJob
from safetensors.torch import load_file
from trainee import trainee

from alignment_trainer.process.metrics import Metrics
from alignment_trainer.serving.peers import resolved
from alignment_trainer.weights import follower as module
from alignment_trainer.weights.check import ModelTensors, check_manifest
from alignment_trainer.weights.follower import WeightFollower
from alignment_trainer.weights.installer import WeightInstaller, WeightsNotApplied
from alignment_trainer.weights.poller import Key, WeightSource
from alignment_trainer.weights.publisher import WeightPublisher

MODEL = ModelTensors({"a": (2,)}, {"a": (2,)}, "float32")


class Sampler:
    """A model of one tensor, in place of vLLM. failures: how often it does not apply weights."""

    def __init__(self, failures: int = 0) -> None:
        self.key: Key = (0, 0)
        self.tensor = torch.zeros(2)
        self.calls: list[str] = []
        self._failures = failures

    async def pause(self) -> None:
        self.calls.append("pause")

    async def apply(self, key: Key, parts: list[Path]) -> None:
        self.calls.append("apply")
        if self._failures:
            self._failures -= 1
            raise RuntimeError("no memory")
        self.key, self.tensor = key, load_file(parts[0])["a"]

    async def resume(self) -> None:
        self.calls.append("resume")


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    return TinyJob(tmp_path_factory.mktemp("job"))


@asynccontextmanager
async def following(job: TinyJob, sampler: Sampler, scratch: Path) -> AsyncIterator[WeightFollower]:
    """A follower at work. What ends it is raised at the end."""
    installer = WeightInstaller(
        target=sampler,
        check=lambda manifest: check_manifest(manifest, MODEL),
        scratch=scratch,
        metrics=Metrics("tiny", "rollout"),
        stop=lambda: False,
    )
    source = WeightSource(resolved([job.url("actor")]), "secret", "rollout-0", 8000, "10.2.0.7")
    follower = WeightFollower(source, installer, on_change=lambda key, error: None)
    task = asyncio.create_task(follower.run())
    try:
        yield follower
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _until(condition: Callable[[], bool], seconds: float = 300) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (other threads make it true)
            await asyncio.sleep(0.02)


def _publish(publisher: WeightPublisher, version: int, shape: int = 2) -> None:
    publisher.publish(version, [("a", torch.full((shape,), float(version)))])


async def _follow(job: TinyJob, sampler: Sampler, scratch: Path) -> None:
    """Until it ends by itself."""
    async with following(job, sampler, scratch):
        await _until(lambda: sampler.calls.count("apply") == 3)
        await asyncio.sleep(0.2)


def _held(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_late_server_gets_the_newest_weights_first(job: TinyJob, tmp_path: Path) -> None:
    sampler = Sampler()
    with trainee(job, attempt=1) as publisher:
        for version in (4, 5):
            _publish(publisher, version)
        async with following(job, sampler, tmp_path):
            await _until(lambda: sampler.key == (1, 5))
            assert sampler.calls == ["pause", "apply", "resume"]
            assert sampler.tensor.tolist() == [5.0, 5.0]
            await _until(lambda: [known.version for known in publisher.servers()] == [5])
            assert [known.url for known in publisher.servers()] == ["http://10.2.0.7:8000"]
            assert _held(tmp_path) == []


async def test_a_server_waits_for_a_trainee_and_for_the_next(job: TinyJob, tmp_path: Path) -> None:
    sampler = Sampler()
    async with following(job, sampler, tmp_path):
        await asyncio.sleep(0.6)
        with trainee(job, attempt=1) as publisher:
            _publish(publisher, 9)
            await _until(lambda: sampler.key == (1, 9))
        with trainee(job, attempt=2) as publisher:
            _publish(publisher, 3)
            await _until(lambda: sampler.key == (2, 3))
        with trainee(job, attempt=1) as publisher:  # one that lingers
            _publish(publisher, 10)
            await _until(lambda: bool(publisher.servers()))
            await asyncio.sleep(0.6)
    assert sampler.key == (2, 3)


async def test_half_applied_weights_are_applied_again_before_it_samples(job: TinyJob, tmp_path: Path) -> None:
    sampler = Sampler(failures=2)
    with trainee(job, attempt=1) as publisher:
        _publish(publisher, 1)
        async with following(job, sampler, tmp_path):
            await _until(lambda: sampler.key == (1, 1))
    assert sampler.calls == ["pause", "apply", "apply", "apply", "resume"]


async def test_a_server_that_cannot_apply_weights_ends(job: TinyJob, tmp_path: Path) -> None:
    sampler = Sampler(failures=10)
    with trainee(job, attempt=1) as publisher:
        _publish(publisher, 1)
        with pytest.raises(ExceptionGroup) as raised:
            await _follow(job, sampler, tmp_path)
    assert raised.group_contains(WeightsNotApplied, match="weights 1-1 could not be applied: no memory")
    assert "resume" not in sampler.calls


async def test_refused_weights_are_told_once_and_the_next_are_taken(job: TinyJob, tmp_path: Path) -> None:
    sampler = Sampler()
    with trainee(job, attempt=1) as publisher:
        _publish(publisher, 1, shape=3)
        async with following(job, sampler, tmp_path) as follower:
            await _until(lambda: any(known.error for known in publisher.servers()))
            assert "tensor `a` is float32 [3], not float32 [2]" in str(publisher.servers()[0].error)
            assert sampler.calls == []
            _publish(publisher, 2)
            await _until(lambda: sampler.key == (1, 2))
            assert follower.error is None
            await _until(lambda: publisher.servers()[0].error is None)


async def test_a_damaged_part_is_told_in_the_end_and_polls_go_on_meanwhile(
    job: TinyJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignment_trainer.weights.fetch._PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(module, "_FETCHES", 2)
    sampler = Sampler()
    with trainee(job, attempt=1) as publisher:
        _publish(publisher, 1)
        part = job.folder / "scratch" / "weights-1-1" / "part-00000.safetensors"
        whole = part.read_bytes()
        part.write_bytes(whole[:-1] + b"\xff")
        async with following(job, sampler, tmp_path):
            await _until(lambda: any("damaged" in str(known.error) for known in publisher.servers()))
            part.write_bytes(whole)
            await _until(lambda: sampler.key == (1, 1))
            await _until(lambda: publisher.servers()[0].error is None)
    assert sampler.calls == ["pause", "apply", "resume"]  # not once with the damaged part
