"""A rank reads and holds its share of a model, and no other: 1, 2 and 4 real ranks, by the kernel's count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import loading
import pytest
import torch
from ranks import run_ranks
from roles import TinyJob
from test_families import GOOD, config_of
from tests.tiny import tiny_tokenizer
from transformers import AutoModelForCausalLM

from alignment_trainer.model.folder import causal_network
from alignment_trainer.model.load import load_model, outline_model

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts by /proc, which Linux has")
RANKS = (1, 2, 4)
SHARDED = ("fsdp2", "zero3")
MIB = 2**20
BESIDE = {"fsdp2": 4 * MIB, "zero3": 24 * MIB}
"""What a rank may hold beside its share: of ZeRO-3 what the allocator keeps of parameters that stood empty, and
DeepSpeed's own."""


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    parameters = loading.write_model(folder / "model")
    network = causal_network(config_of("llama", GOOD["llama"]))
    network.save_pretrained(folder / "small")
    tiny_tokenizer().save_pretrained(folder / "small")
    (folder / "job").mkdir()
    job = TinyJob(folder / "job")
    (folder / "job" / "context.json").write_text(job.context("policy").model_dump_json())
    return {"folder": folder, "bytes": 4 * parameters}


@pytest.fixture(scope="module")
def found(models) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """By engine and ranks, what each rank found."""
    folder = models["folder"]
    engines = [("none", 1), ("zero2", 2), *((sharding, ranks) for sharding in SHARDED for ranks in RANKS)]
    return {
        (sharding, ranks): run_ranks(
            ranks,
            "loading:loaded",
            model=str(folder / "model"),
            small=str(folder / "small"),
            job=str(folder / "job"),
            sharding=sharding,
            scratch=str(folder / f"{sharding}-{ranks}"),
        )
        for sharding, ranks in engines
    }


@pytest.mark.parametrize("sharding", SHARDED)
@pytest.mark.parametrize("ranks", RANKS)
def test_a_rank_reads_its_share_of_the_weights(sharding, ranks, found, models):
    """A MiB is for headers, configs and tokenizers."""
    share = models["bytes"] / ranks
    for rank in found[sharding, ranks]:
        assert share * 0.9 < rank["read"] < share * 1.1 + MIB


@pytest.mark.parametrize("sharding", SHARDED)
@pytest.mark.parametrize("ranks", RANKS)
def test_of_a_checkpoint_a_rank_reads_its_share_and_the_first_proves_the_whole_once(sharding, ranks, found, models):
    """Weights and two moments."""
    saved = 3 * models["bytes"]
    for number, rank in enumerate(found[sharding, ranks]):
        expected = saved / ranks + (saved if number == 0 else 0)
        assert expected * 0.9 < rank["resumed"] < expected * 1.1 + MIB


@pytest.mark.parametrize("sharding", SHARDED)
def test_what_a_rank_holds_once_it_is_loaded_falls_as_the_ranks_grow(sharding, found, models):
    alone = found[sharding, 1][0]["grown"]
    assert alone > models["bytes"] * 0.9
    for ranks in (2, 4):
        for rank in found[sharding, ranks]:
            assert rank["grown"] < alone / ranks * 1.25 + BESIDE[sharding]


def test_every_engine_takes_the_same_steps_from_the_same_folder(found):
    plain = found["none", 1][0]
    assert len(set(plain["losses"])) == 2
    for ranks in found.values():
        for rank in ranks:
            assert rank["losses"] == pytest.approx(plain["losses"], rel=2e-5)
            assert rank["third"] == pytest.approx(plain["third"], rel=2e-5)
            assert rank["again"] == pytest.approx(rank["third"], rel=1e-6)


def test_one_of_1024_ranks_loads_its_share_of_70_billion_parameters(tmp_path):
    """bf16 in the files, fp32 in memory; 141 GB stand on no disk of a test."""
    ranks = 1024
    found = run_ranks(1, "loading:seventy_billion", folder=str(tmp_path), rank=700, of=ranks)[0]
    assert found["parameters"] == 70_553_706_496
    share = found["parameters"] / ranks
    assert 2 * share * 0.9 < found["read"] < 2 * share * 1.1 + MIB
    assert found["grown"] < 4 * share * 1.25 + 32 * MIB


@pytest.mark.parametrize("family", GOOD)
def test_every_slice_of_a_family_is_what_transformers_loads(family, tmp_path):
    """Experts that lie apart in the files and as one tensor in the model among them."""
    torch.manual_seed(0)
    causal_network(config_of(family, GOOD[family])).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, trust_remote_code=False)
    ours, weights = load_model(tmp_path).network, outline_model(tmp_path).weights
    assert _same(dict(theirs.named_buffers()), dict(ours.named_buffers()))
    assert _same(dict(theirs.named_parameters(remove_duplicate=False)), _all_parameters(ours))
    for name, parameter in theirs.named_parameters():
        numbers = parameter.detach().flatten()
        for begin, end in ((0, 1), (len(numbers) // 3, len(numbers) // 2), (len(numbers) - 1, len(numbers)), (5, 5)):
            assert torch.equal(weights.read(name, begin, end), numbers[begin:end]), name


def _all_parameters(network: Any) -> dict[str, torch.Tensor]:
    return dict(network.named_parameters(remove_duplicate=False))


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
