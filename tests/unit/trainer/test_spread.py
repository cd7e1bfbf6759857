"""A frozen model over several devices says what one device says, and each holds its share.

The numbers are found with CPUs in every place. That no operator meets tensors of two devices is shown on devices that
torch imagines, without numbers.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from test_families import GOOD
from test_frozen_models import GROUPS, folder_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from alignment_api.contract.context import Context
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import Precision
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.memory import Holder, Work
from alignment_api.derived.memory import frozen as memory_of_frozen
from alignment_trainer.data.packing import pack, pack_whole
from alignment_trainer.model.block_mask import block_mask, mask_on
from alignment_trainer.model.copies import copies_of, copies_on
from alignment_trainer.model.cut import layers_of
from alignment_trainer.model.frozen_model import LocalScorer
from alignment_trainer.model.inspect import shape_of
from alignment_trainer.model.load import frozen, outline_model, outline_value_model
from alignment_trainer.model.precision import autocast
from alignment_trainer.model.spread import SpreadModel, spread
from alignment_trainer.model.tasks import LANGUAGE
from alignment_trainer.model.weights import Weights
from alignment_trainer.process.instance import Instance

CPU = torch.device("cpu")
IMAGINED = [torch.device("cuda", number) for number in range(3)]
IMAGINATION = FakeTensorMode(allow_non_fake_inputs=True)
"""One for all tests: `attention` keeps masks by device."""


def held(model: SpreadModel) -> list[int]:
    """Bytes of weights by place."""
    counts: Counter[int] = Counter()
    for module, place in model.places.items():
        counts[place] += sum(parameter.nbytes for parameter in module.parameters())
    return [counts[place] for place in sorted(counts)]


@torch.no_grad()
def asked(model: SpreadModel, precision: str) -> Tensor:
    with autocast(CPU, precision):
        return model(pack(GROUPS))


@pytest.mark.parametrize("family", GOOD)
def test_a_model_over_three_devices_says_to_the_bit_what_one_device_says(family: str, tmp_path: Path) -> None:
    folder = folder_of(family, tmp_path)
    for precision in ("fp32", "bf16"):
        whole = frozen(outline_model(folder), precision, CPU)
        with torch.no_grad(), autocast(CPU, precision):
            expected = whole(pack(GROUPS))
        assert torch.equal(asked(spread(outline_model(folder), precision, [CPU] * 3), precision), expected)


def test_a_reward_model_over_two_devices_scores_to_the_bit_what_one_device_scores(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path)
    packed = pack_whole(GROUPS)
    with torch.no_grad():
        alone = frozen(outline_value_model(folder), "fp32", CPU)(packed)
        assert torch.equal(spread(outline_value_model(folder), "fp32", [CPU] * 2)(packed), alone)


class Imagined:
    """Weights of any numbers."""

    def read(self, _name: str, begin: int, end: int) -> Tensor:
        return torch.empty(end - begin)


@pytest.mark.skipif(torch.version.cuda is None, reason="this torch cannot imagine GPUs")
@pytest.mark.parametrize("family", GOOD)
def test_no_operator_meets_tensors_of_two_devices(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (7, 5))
    model, packed = outline_model(folder_of(family, tmp_path)), pack(GROUPS)
    with IMAGINATION, torch.no_grad():
        there = spread(replace(model, weights=Imagined()), "fp32", IMAGINED)
        tensors = {name: t.to(IMAGINED[0]) for name, t in vars(packed).items() if isinstance(t, Tensor)}
        numbers = there(replace(packed, **tensors))
    for module, place in there.places.items():
        assert {tensor.device for tensor in (*module.parameters(), *module.buffers())} <= {IMAGINED[place]}
    assert set(there.places.values()) == {0, 1, 2}
    assert numbers.device == IMAGINED[-1]


class Counted:
    """Weights of a folder, and how many of each tensor were read."""

    def __init__(self, weights: Weights) -> None:
        self._weights, self.read_of = weights, Counter[str]()

    def read(self, name: str, begin: int, end: int) -> Tensor:
        self.read_of[name] += end - begin
        return self._weights.read(name, begin, end)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_the_fullest_of_n_devices_holds_and_reads_an_nth_and_no_more_than_a_layer_above(
    devices: int, tied: bool, tmp_path: Path
) -> None:
    model = outline_model(folder_of("llama", tmp_path, num_hidden_layers=30, tie_word_embeddings=tied))
    weights = Counted(model.weights)
    there = spread(replace(model, weights=weights), "fp32", [CPU] * devices)
    layers = layers_of(model.scorer.body, model.scorer.body.config)
    largest = max(_bytes(layers[0]), _bytes(model.scorer.head))
    parameters = {name: parameter.numel() for name, parameter in model.scorer.named_parameters()}
    assert len(held(there)) == devices
    assert sum(held(there)) == 4 * sum(parameters.values())
    assert max(held(there)) <= sum(held(there)) / devices + largest
    assert weights.read_of.total() == sum(parameters.values())
    assert set(weights.read_of) == {model.scorer.hub_names[name] for name in parameters}


def _bytes(module: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_the_model_of_memory_counts_what_the_fullest_device_holds(
    devices: int, precision: Precision, tied: bool, tmp_path: Path
) -> None:
    model = outline_model(folder_of("llama", tmp_path, num_hidden_layers=30, tie_word_embeddings=tied))
    decoder = Decoder.of(sum(p.numel() for p in model.network.parameters()), shape_of(model.network))
    computed = memory_of_frozen(decoder, Holder(precision, True, ranks=devices), Work(tokens=1, longest=1))
    if devices == 1:
        found = _bytes(frozen(model, precision, CPU))
    else:
        found = max(held(spread(model, precision, [CPU] * devices)))
    assert computed.weights == pytest.approx(found, rel=0.02)


def over_three(folder: Path) -> SpreadModel:
    """The embedding and a layer on the first, two layers on the second, the head on the last."""
    return spread(outline_model(folder_of("llama", folder)), "fp32", [CPU] * 3)


def layers_by_place(model: SpreadModel) -> dict[int, list[nn.Module]]:
    found: dict[int, list[nn.Module]] = {}
    for module, place in model.places.items():
        if type(module).__name__ == "LlamaDecoderLayer":
            found.setdefault(place, []).append(module)
    return found


def test_a_second_micro_batch_is_computed_while_the_first_is_further_on(tmp_path: Path) -> None:
    """The second one waits on the first device for the first one on the next, and the other way round."""
    model, meeting, arrivals = over_three(tmp_path), threading.Barrier(2, timeout=120), Counter[int]()
    early, late = (layers_by_place(model)[place][0] for place in (0, 1))

    def meet(place: int, number: int) -> None:
        arrivals[place] += 1
        if arrivals[place] == number:
            meeting.wait()

    early.register_forward_pre_hook(lambda *_: meet(0, 2))
    late.register_forward_pre_hook(lambda *_: meet(1, 1))
    assert scored(model, 2) == scored(over_three(tmp_path), 2)


def test_each_device_computes_one_micro_batch_at_a_time(tmp_path: Path) -> None:
    model, inside, most = over_three(tmp_path), Counter[int](), Counter[int]()
    lock = threading.Lock()

    def count(place: int, change: int) -> None:
        with lock:
            inside[place] += change
            most[place] = max(most[place], inside[place])
        time.sleep(0.02)  # for others to come in, if they may

    for place, layers in layers_by_place(model).items():
        for layer in layers:
            layer.register_forward_pre_hook(lambda *_, place=place: count(place, 1))
            layer.register_forward_hook(lambda *_, place=place: count(place, -1))
    assert scored(model, 9) == scored(over_three(tmp_path), 9)
    assert set(most.values()) == {1}


def test_a_micro_batch_that_fails_on_its_way_leaves_the_devices_to_the_next(tmp_path: Path) -> None:
    model = over_three(tmp_path)
    handle = layers_by_place(model)[1][0].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        model(pack(GROUPS))
    handle.remove()
    assert scored(model, 1) == scored(over_three(tmp_path), 1)


@torch.no_grad()
def _score(model: SpreadModel) -> list[float]:
    return [float(number) for number in model(pack(GROUPS[:2]))]


def scored(model: SpreadModel, times: int) -> list[list[float]]:
    """From three threads."""
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(_score, [model] * times))


def test_a_block_mask_on_another_device_has_its_rule_there() -> None:
    """`meta` is a second device that every machine has."""
    mask, meta = block_mask(pack(GROUPS)), torch.device("meta")
    there = mask_on(mask, meta)
    blocks = (there.kv_num_blocks, there.kv_indices, there.full_kv_num_blocks, there.full_kv_indices)
    assert {tensor.device for tensor in blocks if tensor is not None} == {meta}
    place = torch.zeros(1, dtype=torch.int64, device=meta)
    assert there.mask_mod(place, place, place, place).device == meta
    assert mask_on(mask, CPU) is mask
    assert torch.equal(mask_on(mask, CPU).to_dense(), mask.to_dense())


def test_gpus_that_hold_a_copy_together_stand_side_by_side() -> None:
    first, second, third, fourth = (torch.device("cuda", number) for number in range(4))
    assert copies_on(4, 2) == ((first, second), (third, fourth))
    assert copies_on(2, 1) == ((first,), (second,))
    assert copies_on(0, 1) == ((CPU,),)


def test_as_many_copies_as_have_room_are_made_and_say_what_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On eight GPUs of 3 MiB: with what a micro-batch takes a model has 3.26 on one, 2.05 on the fuller of two."""
    folder = folder_of("llama", tmp_path, num_hidden_layers=72)
    spec = AlignmentJobSpec.model_validate(
        {
            "model": {"source": f"file://{folder}"},
            "data": {"source": f"file://{folder}/none.jsonl"},
            "algorithm": {"dpo": {}},
            "training": {"precision": "fp32", "microBatchTokens": 256, "recomputeLayers": 0, "maxLength": 128},
        }
    )
    context = Context.model_construct(role="reference", gpus=8)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: SimpleNamespace(total_memory=3 * 2**20))
    asked = cast(Instance, SimpleNamespace(context=context, spec=spec))
    copies = copies_of(asked, LANGUAGE, [folder])
    assert copies == copies_on(8, 2)
    alone, several = LocalScorer(LANGUAGE, folder, spec), LocalScorer(LANGUAGE, folder, spec, ((CPU, CPU),) * 2)
    try:
        for one, other in zip(alone.score(GROUPS), several.score(GROUPS), strict=True):
            assert one.tolist() == other.tolist()
    finally:
        alone.close()
        several.close()
