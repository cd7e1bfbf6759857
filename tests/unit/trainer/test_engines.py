"""Every engine against plain torch in one process. Ranks are real processes joined by gloo."""

import math
from pathlib import Path
from typing import Any

import pytest
import rank_bodies
import torch
from ranks import run_ranks

pytest.importorskip("deepspeed")
STEPS = 4
SHARDINGS = ("fsdp2", "zero2", "zero3")


def goes_on(folder: Path, source: str) -> dict[str, Any]:
    """The arguments of a run that resumes `source` after its second step."""
    checkpoint, reference = folder / source / "0001" / "00000002", folder / source / "reference.pt"
    return {"checkpoint": str(checkpoint), "reference": str(reference)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def plain(folder) -> dict[str, Any]:
    """The same run in one process of plain torch."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield rank_bodies.trained(str(folder / "plain"), steps=STEPS)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def gang(folder, plain) -> dict[str, Any]:
    """What two ranks found, by the name of the run."""
    runs = {}
    for sharding in SHARDINGS:
        runs |= {
            sharding: {"sharding": sharding},
            f"{sharding} from plain": {"sharding": sharding} | goes_on(folder, "plain"),
            f"{sharding} row by row": {"sharding": sharding, "batch_size": 1},
        }
    for sharding in SHARDINGS:  # last: DeepSpeed's autocast leaves marks in the process
        bf16 = {"sharding": sharding, "precision": "bf16"}
        runs |= {f"{sharding} bf16": bf16, f"{sharding} bf16 again": bf16 | goes_on(folder, f"{sharding} bf16")}
    calls = [run | {"folder": str(folder / name), "steps": STEPS} for name, run in runs.items()]
    return dict(zip(runs, run_ranks(2, "rank_bodies:in_turn", runs=calls)[0], strict=True))


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_ranks_take_the_steps_of_one(sharding, gang, plain):
    found = gang[sharding]
    assert found["losses"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert found["losses"] == pytest.approx(plain["losses"], rel=2e-5)
    assert found["norms"] == pytest.approx(plain["norms"], rel=2e-5)
    for ours, theirs in zip(found["metrics"], plain["metrics"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=2e-5)
    assert found["weights"] == pytest.approx(plain["weights"], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_bf16_starts_at_ln_2_and_learns_as_fp32_does(sharding, gang, plain):
    """fp32 masters under autocast; DeepSpeed's own bf16 mode starts elsewhere."""
    found = gang[f"{sharding} bf16"]
    assert found["losses"][0] == pytest.approx(math.log(2), abs=1e-6)
    assert found["losses"] == pytest.approx(plain["losses"], rel=0.02)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_gang_resumes_bit_for_bit(sharding, gang):
    whole, again = gang[f"{sharding} bf16"], gang[f"{sharding} bf16 again"]
    assert again["losses"] == whole["losses"][2:]
    assert again["norms"] == whole["norms"][2:]
    assert again["weights"] == whole["weights"]


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_checkpoint_of_one_rank_goes_on_with_two(sharding, gang, plain):
    found = gang[f"{sharding} from plain"]
    assert found["losses"] == pytest.approx(plain["losses"][2:], rel=2e-5)
    assert found["weights"] == pytest.approx(plain["weights"], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_checkpoint_of_two_ranks_goes_on_with_one(sharding, gang, plain, folder):
    back = rank_bodies.resumed(str(folder / f"back from {sharding}"), steps=STEPS, **goes_on(folder, sharding))
    assert back["losses"] == pytest.approx(plain["losses"][2:], rel=2e-5)
    assert back["weights"] == pytest.approx(plain["weights"], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_rank_without_a_row_of_the_batch_changes_nothing(sharding, gang, folder):
    """Batches of one row on two ranks: the second rank computes a repeat that weighs nothing."""
    one = rank_bodies.trained(str(folder / f"alone {sharding}"), steps=STEPS, batch_size=1)
    two = gang[f"{sharding} row by row"]
    assert two["losses"] == pytest.approx(one["losses"], rel=2e-5)
    assert two["norms"] == pytest.approx(one["norms"], rel=2e-5)
