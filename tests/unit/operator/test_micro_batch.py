"""`auto` for the micro-batch: the least recomputed with which enough fits, then the most tokens that do."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.operator.small_cluster import make_job, ppo_spec

from alignment_api.contract.numbers import ALL_LAYERS
from alignment_api.contract.platform import Gpu
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.stored import read_stored_spec
from alignment_api.derived.decoder import Decoder, shape_in
from alignment_api.derived.micro_batch import (
    Limit,
    TooLittleMemory,
    Undecided,
    decide,
    recomputed_of,
    tokens_of,
    with_micro_batch,
)
from alignment_api.derived.role_memory import GIB, Place, memory_of
from alignment_api.derived.room import limits_of
from alignment_api.derived.sizing import HEADROOM

LAYERS = 10
SMOLLM2 = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}
H100 = Gpu(product="H100", memory_gib=80)


def spec(**training: Any) -> AlignmentJobSpec:
    return make_job({"training": training}).spec


def room_for(numbers: int) -> tuple[Limit, ...]:
    """A token takes a number for each layer that is kept, and one for the rest."""

    def need(spec: AlignmentJobSpec) -> float:
        return tokens_of(spec.training) * (1 + LAYERS - recomputed_of(spec.training))

    return (Limit(numbers, "of numbers", need),)


@pytest.mark.parametrize(
    ("numbers", "tokens", "layers"),
    [
        (10**9, 8192, 0),
        (8192 * 11, 8192, 0),
        (8192 * 11 - 1, 4096, 0),
        (2048 * 11, 2048, 0),
        (2048 * 11 - 1, 2048, 1),
        (2048 * 2, 2048, 9),
        (2048, 2048, 10),
        (2047, 1024, 10),
        (64, 64, 10),
    ],
)
def test_layers_are_recomputed_only_until_enough_fits_at_once(numbers: int, tokens: int, layers: int) -> None:
    report = decide(spec(maxLength=32), LAYERS, room_for(numbers))
    assert (report.tokens, report.recompute_layers) == (tokens, layers)
    assert "of numbers" in report.why


def test_where_not_even_the_least_fits_the_job_is_refused() -> None:
    with pytest.raises(TooLittleMemory, match="of numbers"):
        decide(spec(maxLength=32), LAYERS, room_for(63))


def test_a_written_number_holds_whatever_fits() -> None:
    for numbers in (63, 10**9):
        report = decide(spec(microBatchTokens=5000), LAYERS, room_for(numbers))
        assert (report.tokens, report.recompute_layers) == (5000, LAYERS if numbers == 63 else 0)
        assert decide(spec(recomputeLayers=3), LAYERS, room_for(10**9)).recompute_layers == 3
        both = decide(spec(microBatchTokens=5000, recomputeLayers=99), LAYERS, room_for(numbers))
        assert (both.tokens, both.recompute_layers, both.why) == (5000, LAYERS, "the spec says so")


def test_a_pair_of_the_longest_rows_may_be_computed_where_it_fits() -> None:
    assert decide(spec(maxLength=30_000), LAYERS, room_for(10**9)).tokens == 60_000


def test_what_is_free_never_decides_which_rows_are_too_long() -> None:
    assert decide(spec(maxLength=700), LAYERS, room_for(1400)).tokens == 1400
    with pytest.raises(TooLittleMemory, match="of numbers"):
        decide(spec(maxLength=700), LAYERS, room_for(1399))


def test_pods_that_are_sized_for_the_job_take_the_most_and_keep_the_least() -> None:
    report = decide(spec(), LAYERS, ())
    assert (report.tokens, report.recompute_layers, report.why) == (8192, LAYERS, "pods are sized for it")


def test_what_is_open_is_no_number() -> None:
    for read in (tokens_of, recomputed_of):
        with pytest.raises(Undecided, match="prepare"):
            read(spec().training)


@pytest.mark.parametrize(("before", "layers"), [(True, ALL_LAYERS), (False, 0)])
def test_a_stored_job_of_an_earlier_release_says_all_or_none(before: bool, layers: int) -> None:
    raw = spec().model_dump(mode="json", exclude_unset=True) | {"training": {"gradientCheckpointing": before}}
    assert recomputed_of(read_stored_spec(raw).training) == layers


def test_on_gpus_each_trainee_must_fit_on_those_that_it_is_given() -> None:
    model, asked = Decoder.of(2 * 10**9), make_job(ppo_spec() | {"training": {"precision": "bf16"}}).spec
    actor, critic = limits_of(asked, model, H100, None)
    assert actor.bytes == critic.bytes == 80 * GIB / HEADROOM["gpu"]
    whole = with_micro_batch(asked, 4096, 0)
    assert actor.need(whole) == memory_of(whole, "actor", model, Place(True)).on_device
    assert actor.need(whole) > critic.need(whole)


def test_on_one_machine_all_processes_share_what_is_free() -> None:
    model, asked = Decoder.of(10**8), with_micro_batch(make_job(ppo_spec()).spec, 4096, 0)
    (limit,) = limits_of(asked, model, None, 10 * GIB)
    assert limit.bytes == 10 * GIB
    trainees = [memory_of(asked, role, model, Place(False)) for role in ("actor", "critic")]
    assert limit.need(asked) > HEADROOM["cpu"] * sum(trainee.total for trainee in trainees)


def test_a_machine_that_may_hold_the_job_tries_with_the_least_and_says_so() -> None:
    shape = shape_in(SMOLLM2)
    assert shape is not None
    model = Decoder(134_515_008, shape)
    asked = make_job(ppo_spec() | {"training": {"maxLength": 128, "batchSize": 8, "recomputeLayers": 0}}).spec
    least = with_micro_batch(asked, 128, 0)
    (limit,) = limits_of(asked, model, None, 0)
    assert limit.bare is not None
    need, bare = limit.need(least), limit.bare(least)
    enough, tried, refused = (limits_of(asked, model, None, int(free) + 1) for free in (need, bare, bare - 2))
    assert decide(asked, model.shape.layers, enough).tokens == 128
    report = decide(asked, model.shape.layers, tried)
    assert (report.tokens, report.recompute_layers) == (128, 0)
    assert "may be too little" in report.why
    with pytest.raises(TooLittleMemory, match="free on this machine"):
        decide(asked, model.shape.layers, refused)


def test_on_cpus_of_a_cluster_the_memory_that_is_written_bounds_it() -> None:
    asked = make_job({"roles": {"policy": {"memory": "8Gi"}}}).spec
    (limit,) = limits_of(asked, Decoder.of(10**8), None, None)
    assert limit.bytes == 8 * GIB / HEADROOM["cpu"]
    assert limits_of(make_job().spec, Decoder.of(10**8), None, None) == ()


def test_a_small_model_on_a_small_machine_takes_what_was_the_default() -> None:
    """SmolLM2-135M in steps as those of the quick start, with 12 GiB free."""
    asked = spec(batchSize=12, maxLength=128, recomputeLayers=0, precision="fp32")
    shape = shape_in(SMOLLM2)
    assert shape is not None
    model = Decoder(134_515_008, shape)
    assert decide(asked, model.shape.layers, limits_of(asked, model, None, 12 * GIB)).tokens == 8192
