"""Default sizes: bytes per parameter by hand, of models whose widths are nothing."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.operator.small_cluster import make_job, ppo_spec

from alignment_api.contract.platform import Gpu, Pool
from alignment_api.contract.status import ModelShape
from alignment_api.derived.adapters import trained_parameters
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.role_memory import GIB, Place, memory_of
from alignment_api.derived.sizing import Size, gpus_of_a_copy, probe_bytes, shortage, size_of

H100 = Pool(gpu=Gpu(product="H100-SXM5", memory_gib=80))
CPUS = Pool()


def bare(parameters: int) -> Decoder:
    """So many weights, and no activations to speak of."""
    nothing = dict.fromkeys(("hidden", "queries", "keys", "inner", "vocabulary", "embeddings"), 0)
    return Decoder(parameters, ModelShape(layers=10_000, tied=False, **nothing))


def size(role: str, pool: Pool, parameters: int | None, **spec: Any) -> Size:
    """Of a job in bf16 unless `spec` says otherwise."""
    training = {"precision": "bf16"} | spec.get("training", {})
    return size_of(make_job(spec | {"training": training}).spec, role, pool, bare(parameters) if parameters else None)


@pytest.mark.parametrize(
    ("billions", "gpus"),
    [(1, 1), (4, 1), (5, 2), (7, 2), (13, 3), (32, 7), (70, 15)],
)
def test_a_trainee_gets_the_gpus_that_hold_its_state_with_head_room(billions: int, gpus: int) -> None:
    # 1.1 x 16 bytes per parameter over 80 GiB: 7B 1.43, 13B 2.66, 32B 6.56, 70B 14.34; one GPU has 2 more, of casts
    assert size("policy", H100, billions * 10**9).gpus == gpus


@pytest.mark.parametrize(("billions", "gpus"), [(1, 1), (7, 1), (32, 1), (42, 2), (70, 3), (180, 6), (400, 12)])
def test_a_server_gets_the_gpus_that_hold_one_copy_together_with_head_room(billions: int, gpus: int) -> None:
    # 2 bytes a weight of a product, 4 of an embedding, 2 of a head, times 1.1: 32B 72 GiB of weights, 42B 97, 70B 161,
    # 180B 416, 400B 917; to the fullest of GPUs by whole layers, and what a layer makes of 2,048 tokens on each
    spec = make_job({"training": {"precision": "bf16"}}).spec
    for role in ("reference", "evaluator"):
        assert size_of(spec, role, H100, Decoder.of(billions * 10**9)).gpus == gpus


def test_a_server_whose_written_gpus_are_too_few_is_refused_with_those_that_are_enough() -> None:
    spec = make_job({"training": {"precision": "bf16"}, "roles": {"reference": {"gpus": 1}}}).spec
    assert shortage(spec, "reference", H100, Decoder.of(36 * 10**9)) is None
    assert shortage(spec, "reference", H100, Decoder.of(42 * 10**9)) == (
        "reference needs 89.1 GiB a pod for 42,000,000,000 parameters, it has 1 x 80 GiB (H100-SXM5); smallest change "
        "that fits: roles.reference.gpus: 2"
    )
    assert shortage(spec, "reference", Pool(gpu=Gpu(product="small", memory_gib=1)), Decoder.of(42 * 10**9)) == (
        "reference needs 89.1 GiB a pod for 42,000,000,000 parameters, it has 1 x 1 GiB (small); smallest change "
        "that fits: a smaller model, or GPUs of more memory"
    )


@pytest.mark.parametrize(("billions", "together"), [(7, 1), (32, 1), (42, 2), (70, 4), (180, 8), (1000, 8)])
def test_a_server_of_eight_gpus_has_as_many_copies_as_have_room(billions: int, together: int) -> None:
    """70B would have room on 3 and 180B on 6, which do not divide 8."""
    spec = make_job({"training": {"precision": "bf16"}, "roles": {"reference": {"gpus": 8}}}).spec
    assert gpus_of_a_copy(spec, "reference", Decoder.of(billions * 10**9), 8, 80 * GIB) == together


@pytest.mark.parametrize(("precision", "memory"), [("bf16", "6Gi"), ("fp32", "8Gi"), ("auto", "8Gi")])
def test_a_frozen_copy_counts_as_the_larger_while_nobody_knows_the_precision(precision: str, memory: str) -> None:
    # of a weight 3 bytes in bf16 (750e6 at 2, the embedding at 4, its cast at 2), 4 in fp32; and what is computed
    spec = make_job({"training": {"precision": precision}}).spec
    assert size_of(spec, "reference", CPUS, Decoder.of(10**9)).memory == memory


def test_what_the_spec_says_is_taken() -> None:
    role = {"gpus": 8, "cpu": "32", "memory": "512Gi"}
    assert size("policy", H100, 7 * 10**9, roles={"policy": role}) == Size(8, 8, "32", "512Gi")


def test_processes_on_cpus_share_one_copy_of_the_state() -> None:
    # 300e6 x 1.2 x (18 + 12 of a checkpoint that is written) = 10.06 GiB; of two 16 + 12: 9.39; 1 for each process
    assert size("policy", CPUS, 300_000_000) == Size(1, 0, "1", "12Gi")
    assert size("policy", CPUS, 300_000_000, roles={"policy": {"processes": 2}}) == Size(2, 0, "2", "12Gi")


def test_before_prepare_has_looked_a_usual_model_is_taken_for_granted() -> None:
    usual = {"gpu": Decoder.of(8 * 10**9), "cpu": Decoder.of(10**9)}
    spec = make_job().spec
    for role in ("policy", "reference"):
        assert size_of(spec, role, H100, None) == size_of(spec, role, H100, usual["gpu"])
        assert size_of(spec, role, CPUS, None) == size_of(spec, role, CPUS, usual["cpu"])


def test_prepare_takes_no_gpu_from_a_pool_that_has_them() -> None:
    assert size("prepare", H100, None) == Size(1, 0, "1", "4Gi")


def test_without_sharding_there_is_one_gpu() -> None:
    assert size("policy", H100, 7 * 10**9, training={"sharding": "none"}).gpus == 1


def test_a_rollout_server_holds_weights_keys_and_values_and_two_versions_on_their_way() -> None:
    # 135e6 x 2 x 1.2 = 0.3 GiB, 3 of its process, 1 for keys and values -> 5; 135e6 x 2 x 2 = 0.5 GiB -> 1
    assert size("rollout", CPUS, 135_000_000, **ppo_spec()) == Size(1, 0, "1", "6Gi", 1)
    asked = ppo_spec(rollout={"kv_cache_memory": "4Gi"})
    assert size("rollout", CPUS, 135_000_000, **asked).memory == "9Gi"
    # on GPUs 70e9 x 2 x 1.1 = 143.4 GiB: 2; with 40 GiB of keys and values 187.4 GiB: 3
    assert size("rollout", H100, 70 * 10**9, **ppo_spec()).gpus == 2
    assert size("rollout", H100, 70 * 10**9, **ppo_spec(rollout={"kv_cache_memory": "40Gi"})).gpus == 3


def test_every_server_has_a_copy_of_its_own_and_a_gang_shares_one() -> None:
    # rollout: 2 x 1.1 bytes, 70B: 1.79 GPUs each; critic: 16 x 1.1 bytes, 70B over 4 pods: 3.58 each
    spec = ppo_spec(rollout={"replicas": 4}, critic={"replicas": 4})
    assert size("rollout", H100, 70 * 10**9, **spec).gpus == 2
    assert size("critic", H100, 70 * 10**9, **spec).gpus == 4
    assert shortage(make_job(ppo_spec(reward={"replicas": 0})).spec, "reward", H100, bare(7 * 10**9)) is None


def test_a_reward_server_holds_every_reward_model_and_an_actor_may_hold_its_critic() -> None:
    models = [{"model": {"source": f"pvc://models/{name}"}, "name": name} for name in ("helpful", "harmless")]
    rewards = [*models, {"function": {"numericAnswer": {}}}]
    # 1e9 x 2 x 4 x 1.2 = 8.9 GiB, and 1 for the process
    assert size("reward", CPUS, 10**9, algorithm={"ppo": {"rewards": rewards}}).memory == "10Gi"
    # 2 x 16 x 1.1 bytes, 7B: 2.87 GPUs
    assert size("actor", H100, 7 * 10**9, **ppo_spec()).gpus == 2
    assert size("actor", H100, 7 * 10**9, **ppo_spec(critic={"placement": "withActor"})).gpus == 3


def test_only_what_can_never_fit_is_refused() -> None:
    spec = make_job({"roles": {"policy": {"memory": "2Gi"}}}).spec
    # (18 + 12) bytes x 200e6 = 5.59 GiB, as long as the precision may be bf16
    assert shortage(spec, "policy", CPUS, bare(200_000_000)) == (
        "policy needs 5.6 GiB a pod for 200,000,000 parameters, it has 2Gi; "
        "smallest change that fits: roles.policy.memory: 6Gi"
    )
    assert shortage(spec, "policy", CPUS, bare(70_000_000)) is None
    assert shortage(make_job().spec, "policy", H100, bare(70 * 10**9)) is None


def test_prepare_probes_with_what_its_process_leaves_of_its_memory() -> None:
    """1.5 GiB for the process; a quarter where that is more than all of it."""
    assert probe_bytes(make_job().spec) == 2.5 * GIB
    assert probe_bytes(make_job({"roles": {"prepare": {"memory": "40Gi"}}}).spec) == 38.5 * GIB
    assert probe_bytes(make_job({"roles": {"prepare": {"memory": "1Gi"}}}).spec) == GIB / 4


def test_adapters_are_sized_by_the_frozen_base_and_what_is_trained_beside_it() -> None:
    """A base of 7.6 billion: 2 bytes of products, 4 of embeddings, and of each adapter 16 with its copy of 2."""
    shape = ModelShape(
        layers=32,
        hidden=4096,
        queries=4096,
        keys=1024,
        inner=14_336,
        vocabulary=128_256,
        embeddings=525_336_576,
        tied=True,
    )
    model = Decoder(7_600_000_000, shape)
    lora = make_job({"training": {"precision": "bf16", "lora": {"rank": 16}}}).spec
    adapters = 32 * 16 * (2 * 8192 + 2 * 5120 + 3 * 18_432)
    assert trained_parameters(lora.training, model) == adapters == 41_943_040
    in_bf16 = 32 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14_336)
    state = memory_of(lora, "policy", model, Place(True)).state
    assert state == 4 * 7_600_000_000 - 2 * in_bf16 + (16 + 2) * adapters
    assert size_of(lora, "policy", H100, model).gpus == 1
    assert size_of(make_job({"training": {"precision": "bf16"}}).spec, "policy", H100, model).gpus == 2


@pytest.mark.parametrize(
    ("targets", "each"),
    [
        (["q_proj"], 8),
        (["self_attn.k_proj", "mlp.k_proj"], 6),
        (["qkv_proj"], 12),
        (["gate_up_proj"], 20),
        (["odd"], 20),
    ],
)
def test_named_targets_count_their_own_maps_and_an_unknown_one_the_widest(targets: list[str], each: int) -> None:
    shape = ModelShape(layers=3, hidden=4, queries=4, keys=2, inner=8, vocabulary=9, embeddings=36, tied=True)
    training = make_job({"training": {"lora": {"rank": 5, "targets": targets}}}).spec.training
    assert trained_parameters(training, Decoder(1000, shape)) == 3 * 5 * each
    assert trained_parameters(training, Decoder(1000, shape, has_head=False)) == 3 * 5 * each + 4
