"""What a training step does not pay for: casts at each use, waits for the device, the first step's compilation."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Setting, pairs, tiny_llama, tiny_run
from torch.utils._python_dispatch import TorchDispatchMode

from alignment_api.contract.context import Context
from alignment_trainer.data.packing import pack
from alignment_trainer.engines import ENGINES, OptimizerOptions
from alignment_trainer.loop.offline import StepReport
from alignment_trainer.loop.reporting import Steps
from alignment_trainer.model.heads import scorer
from alignment_trainer.process.compiled_code import keep_compiled_code

BATCHES = [pack([pair.group for pair in pairs(3, seed)]) for seed in range(4)]
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero", "_unique2", "bincount")
"""Operators whose answer, or whose shape, a host has to wait for."""


def by_autocast() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Gradient norms and weights of two steps of two micro-batches each: torch's autocast and AdamW alone."""
    model = scorer(tiny_llama())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, fused=True, weight_decay=0)
    norms = []
    for step in range(2):
        for batch in BATCHES[2 * step : 2 * step + 2]:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                numbers = model(batch)
            numbers.mean().backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item())
        optimizer.step()
        optimizer.zero_grad()
    return norms, {model.hub_names[name]: p.detach() for name, p in model.named_parameters()}


def test_weights_cast_once_a_step_train_to_the_same_bits_as_autocast():
    norms, weights = by_autocast()
    engine = ENGINES["none"](scorer(tiny_llama()), OptimizerOptions(0.0, 1.0), "bf16", torch.device("cpu"))
    for step in range(2):
        for batch in BATCHES[2 * step : 2 * step + 2]:
            engine.backward(engine.forward(batch).mean())
        assert engine.step(1e-3) == norms[step]
    found = dict(engine.full_weights())
    assert found.keys() == weights.keys()
    assert all(tensor.dtype == torch.float32 and torch.equal(tensor, weights[name]) for name, tensor in found.items())


class Counted(TorchDispatchMode):
    """Operators by name, and how many weights were cast."""

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.casts = list[str](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.waits += [name] * (name in WAITS)
        wide = name == "_to_copy" and args[0].dtype == torch.float32 and args[0].ndim == 2
        self.casts += wide and args[0].shape[1] in (64, 96) and args[0].shape[0] in (32, 64, 96)
        return func(*args, **(kwargs or {}))


def test_a_micro_batch_waits_for_nothing_and_casts_no_weight(tmp_path):
    setting = Setting(precision="bf16", steps=1, micro_tokens=200)
    engine = ENGINES["none"](scorer(tiny_llama()), OptimizerOptions(0.0, 1.0), "bf16", torch.device("cpu"))
    run, _ = tiny_run(tmp_path, setting, engine)
    counted, micros = Counted(), 0
    for batch in run.batches():
        for micro in batch.micros:
            with counted:
                run.engine.backward(run.loss(micro))
            micros += 1
        run.finish(batch)
    assert micros > 1
    assert counted.waits == []
    assert counted.casts == 0


def test_the_first_step_counts_neither_as_pace_nor_for_the_time_that_is_left():
    report = StepReport(1, 10, {}, 0.0, 1.0, tokens=100, seconds=60.0)
    steps = Steps()
    assert steps.after(report) is None
    assert steps.after(replace(report, step=2, seconds=2.0)) == (50.0, 16)
    assert steps.after(replace(report, step=3, seconds=3.0)) == (40.0, 18)


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


def context(storage: Path, gpus: int) -> Context:
    return Context.model_construct(storage=str(storage), gpus=gpus)


def kept_in(storage: Path, gpus: int = 1) -> str | None:
    keep_compiled_code(context(storage, gpus))
    return os.environ.get("TORCHINDUCTOR_CACHE_DIR")


@pytest.mark.usefixtures("no_cache")
def test_compiled_code_stays_in_the_jobs_storage_closed_to_others(tmp_path):
    assert kept_in(tmp_path) == str(tmp_path / "compiled")
    assert (tmp_path / "compiled").stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("no_cache")
def test_code_that_others_could_write_is_never_loaded(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "compiled").mkdir()
    (tmp_path / "open" / "compiled").chmod(0o770)
    assert kept_in(tmp_path / "open") is None
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "compiled").symlink_to(tmp_path)
    assert kept_in(tmp_path / "linked") is None


@pytest.mark.usefixtures("no_cache")
def test_roles_without_a_gpu_or_the_storage_keep_none(tmp_path):
    assert kept_in(tmp_path, gpus=0) is None
    assert kept_in(tmp_path / "not mounted") is None
    assert not (tmp_path / "compiled").exists()
