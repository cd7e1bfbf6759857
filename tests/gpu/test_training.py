"""Engines on one GPU against plain torch in fp32, and what a frozen model says there."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import write_model
from tiny_runs import Setting, pairs, tiny_llama, tiny_run

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_trainer.data.packing import pack
from alignment_trainer.engines import ENGINES, Engine, OptimizerOptions
from alignment_trainer.loop.offline import Run
from alignment_trainer.model.copies import ON_CPU
from alignment_trainer.model.frozen_model import LocalScorer
from alignment_trainer.model.heads import scorer
from alignment_trainer.model.tasks import LANGUAGE

pytestmark = pytest.mark.gpu
OPTIONS = OptimizerOptions(0.01, 1.0)


def engine_on(device: torch.device, sharding: str, precision: str = "fp32", recompute: bool = False) -> Engine:
    if sharding != "none":
        pytest.importorskip("deepspeed")
    return ENGINES[sharding](scorer(tiny_llama(), recompute), OPTIONS, precision, device)


def train(run: Run) -> None:
    for batch in run.batches():
        for micro in batch.micros:
            run.engine.backward(run.loss(micro))
        run.finish(batch)


def stepped(engine: Engine) -> dict[str, Any]:
    """Numbers of two micro-batches, the gradient's norm, and the weights after one step."""
    found = []
    for seed in (1, 2):
        numbers = engine.forward(pack([pair.group for pair in pairs(4, seed)]))
        engine.backward(numbers.mean())
        found.append(numbers.detach().cpu())
    norm = engine.step(1e-3)
    weights = {name: tensor for name, tensor in engine.full_weights() if tensor is not None}
    return {"numbers": torch.cat(found), "norm": norm, "weights": weights}


@pytest.mark.parametrize(
    ("sharding", "precision", "recompute", "digits"),
    [
        ("none", "fp32", False, 1e-4),
        ("none", "fp32", True, 1e-4),
        ("fsdp2", "fp32", False, 1e-4),
        ("zero2", "fp32", False, 1e-4),
        ("zero3", "fp32", False, 1e-4),
        ("none", "bf16", False, 3e-2),
        ("none", "bf16", True, 3e-2),
        ("fsdp2", "bf16", False, 3e-2),
        ("zero2", "bf16", False, 3e-2),
        ("zero3", "bf16", False, 3e-2),
    ],
)
def test_a_step_on_a_gpu_is_the_step_of_plain_torch_in_fp32(sharding, precision, recompute, digits, cuda):
    """digits: the relative difference that is allowed, of numbers and norm. AdamW's first step is the rate at most."""
    plain = stepped(engine_on(torch.device("cpu"), "none"))
    found = stepped(engine_on(cuda, sharding, precision, recompute))
    assert (found["numbers"] - plain["numbers"]).norm() <= digits * plain["numbers"].norm()
    assert found["norm"] == pytest.approx(plain["norm"], rel=digits)
    for name, weight in plain["weights"].items():
        assert (found["weights"][name] - weight).abs().max() <= 2.1e-3, name
        if precision == "fp32":
            assert (found["weights"][name] - weight).norm() <= 1e-2 * weight.norm(), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_starts_at_ln_2_and_learns(precision, tmp_path, cuda):
    setting = Setting(precision=precision, steps=20, rows=8, batch_size=8, checkpoint_every=20)
    run, recorder = tiny_run(tmp_path, setting, engine_on(cuda, "none", precision))
    train(run)
    assert recorder.losses[0] == pytest.approx(math.log(2), abs=1e-6 if precision == "fp32" else 5e-3)
    assert recorder.losses[-1] < 0.5


def test_a_step_of_several_micro_batches_waits_for_nothing_but_its_end(tmp_path, cuda):
    setting = Setting(precision="bf16", steps=3, rows=16, batch_size=8)
    run, _ = tiny_run(tmp_path, setting, engine_on(cuda, "none", "bf16"))
    for number, batch in enumerate(run.batches()):
        for micro in batch.micros:
            torch.cuda.set_sync_debug_mode("error" if number else "default")
            try:
                run.engine.backward(run.loss(micro))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        run.finish(batch)


@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize(("precision", "nats"), [("fp32", 1e-3), ("bf16", 0.1)])
def test_a_frozen_model_says_what_it_says_on_a_cpu(precision, nats, places, tmp_path, cuda):
    """Over several places all on this GPU, too, with a thread for each."""
    folder = write_model(tmp_path / "model")
    groups = [pair.group for pair in pairs(60)]
    there, here = (
        LocalScorer(LANGUAGE, folder, spec(folder, kind), copies)
        for kind, copies in ((precision, ((torch.device("cuda", 0),) * places,)), ("fp32", ON_CPU))
    )
    try:
        found, expected = np.concatenate(there.score(groups)), np.concatenate(here.score(groups))
    finally:
        there.close()
        here.close()
    assert np.abs(found - expected).max() <= nats


def spec(folder: Any, precision: str) -> AlignmentJobSpec:
    return AlignmentJobSpec.model_validate(
        {
            "model": {"source": f"file://{folder}"},
            "data": {"source": f"file://{folder}/none.jsonl"},
            "algorithm": {"dpo": {}},
            "training": {"precision": precision, "microBatchTokens": 512, "recomputeLayers": 0, "maxLength": 256},
        }
    )
