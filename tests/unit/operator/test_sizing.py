"""Default sizes, by the guide's bytes per parameter."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.operator.small_cluster import make_job, ppo_spec

from alignment_api.contract.platform import Gpu, Pool
from alignment_api.derived.sizing import GIB, Size, probe_bytes, shortage, size_of

H100 = Pool(gpu=Gpu(product="H100-SXM5", memory_gib=80))
CPUS = Pool()


def size(role: str, pool: Pool, parameters: int | None, **spec: Any) -> Size:
    """Of a job in bf16 unless `spec` says otherwise."""
    training = {"precision": "bf16"} | spec.get("training", {})
    return size_of(make_job(spec | {"training": training}).spec, role, pool, parameters)


@pytest.mark.parametrize(
    ("billions", "gpus"),
    [(1, 1), (4, 1), (7, 2), (13, 3), (32, 8), (70, 16)],
)
def test_a_trainee_gets_the_gpus_that_hold_its_state_with_head_room(billions: int, gpus: int) -> None:
    # 16 x 1.2 bytes per parameter over 80 GiB: 7B 1.56, 13B 2.91, 32B 7.15, 70B 15.65
    assert size("policy", H100, billions * 10**9).gpus == gpus


def test_a_frozen_copy_needs_an_eighth_of_its_trainee() -> None:
    # 2 x 1.2 bytes per parameter over 80 GiB: 70B 1.96
    assert size("reference", H100, 70 * 10**9).gpus == 2
    assert size("evaluator", H100, 7 * 10**9).gpus == 1


@pytest.mark.parametrize(("precision", "gpus"), [("bf16", 2), ("fp32", 4), ("auto", 4)])
def test_a_frozen_copy_counts_as_the_larger_while_nobody_knows_the_precision(precision: str, gpus: int) -> None:
    # 4 x 1.2 bytes per parameter over 80 GiB: 70B 3.91
    assert size("reference", H100, 70 * 10**9, training={"precision": precision}).gpus == gpus


def test_what_the_spec_says_is_taken() -> None:
    role = {"gpus": 8, "cpu": "32", "memory": "512Gi"}
    assert size("policy", H100, 7 * 10**9, roles={"policy": role}) == Size(8, 8, "32", "512Gi")


def test_processes_on_cpus_share_one_copy_of_the_state() -> None:
    # 135e6 x (16 x 1.2 + 12 of a checkpoint that is written) = 3.92 GiB -> 4, and 4 for each process
    assert size("policy", CPUS, 135_000_000) == Size(1, 0, "1", "8Gi")
    assert size("policy", CPUS, 135_000_000, roles={"policy": {"processes": 2}}) == Size(2, 0, "2", "12Gi")


def test_before_prepare_has_looked_a_usual_model_is_taken_for_granted() -> None:
    # 8e9 x 2 x 1.2 = 17.9 GiB -> 18 + 4; on CPU 1e9 x 2 x 1.2 = 2.2 GiB -> 3 + 4
    assert size("reference", H100, None) == Size(1, 1, "4", "22Gi")
    assert size("reference", CPUS, None) == Size(1, 0, "1", "7Gi")


def test_prepare_takes_no_gpu_from_a_pool_that_has_them() -> None:
    assert size("prepare", H100, None) == Size(1, 0, "1", "4Gi")


def test_without_sharding_there_is_one_gpu() -> None:
    assert size("policy", H100, 7 * 10**9, training={"sharding": "none"}).gpus == 1


def test_a_rollout_server_holds_weights_keys_and_values_and_two_versions_on_their_way() -> None:
    # 135e6 x 2 x 1.2 = 0.3 GiB -> 1, and 4 for the process, 1 for keys and values, 135e6 x 2 x 2 = 0.5 GiB -> 1
    assert size("rollout", CPUS, 135_000_000, **ppo_spec()) == Size(1, 0, "1", "7Gi", 1)
    asked = ppo_spec(rollout={"kv_cache_memory": "4Gi"})
    assert size("rollout", CPUS, 135_000_000, **asked).memory == "10Gi"
    # on GPUs 70e9 x 2 x 1.2 = 156.5 GiB: 2; with 40 GiB of keys and values 196.5 GiB: 3
    assert size("rollout", H100, 70 * 10**9, **ppo_spec()).gpus == 2
    assert size("rollout", H100, 70 * 10**9, **ppo_spec(rollout={"kv_cache_memory": "40Gi"})).gpus == 3


def test_every_server_has_a_copy_of_its_own_and_a_gang_shares_one() -> None:
    # reference: 2 x 1.2 bytes, 70B: 1.96 GPUs each; critic: 16 x 1.2 bytes, 70B over 4 pods: 3.91 each
    spec = ppo_spec(reference={"replicas": 4}, critic={"replicas": 4})
    assert size("reference", H100, 70 * 10**9, **spec).gpus == 2
    assert size("critic", H100, 70 * 10**9, **spec).gpus == 4
    assert shortage(make_job(ppo_spec(reward={"replicas": 0})).spec, "reward", H100, 7 * 10**9) is None


def test_a_reward_server_holds_every_reward_model_and_an_actor_may_hold_its_critic() -> None:
    models = [{"model": {"source": f"pvc://models/{name}"}, "name": name} for name in ("helpful", "harmless")]
    rewards = [*models, {"function": {"numericAnswer": {}}}]
    # 13e9 x 2 x 2 x 1.2 = 58.1 GiB: 1 GPU; 32e9: 143 GiB: 2
    assert size("reward", H100, 13 * 10**9, algorithm={"ppo": {"rewards": rewards}}).gpus == 1
    assert size("reward", H100, 32 * 10**9, algorithm={"ppo": {"rewards": rewards}}).gpus == 2
    assert size("actor", H100, 7 * 10**9, **ppo_spec()).gpus == 2
    assert size("actor", H100, 7 * 10**9, **ppo_spec(critic={"placement": "withActor"})).gpus == 4


def test_only_what_can_never_fit_is_refused() -> None:
    spec = make_job({"roles": {"policy": {"memory": "2Gi"}}}).spec
    # (16 + 12) bytes x 200e6 = 5.22 GiB
    assert shortage(spec, "policy", CPUS, 200_000_000) == (
        "policy needs 5.2 GiB a pod for 200,000,000 parameters, it has 2Gi; "
        "smallest change that fits: roles.policy.memory: 6Gi"
    )
    assert shortage(spec, "policy", CPUS, 70_000_000) is None
    assert shortage(make_job().spec, "policy", H100, 70 * 10**9) is None


def test_prepare_probes_with_what_its_process_leaves_of_its_memory() -> None:
    """1.5 GiB for the process; a quarter where that is more than all of it."""
    assert probe_bytes(make_job().spec) == 2.5 * GIB
    assert probe_bytes(make_job({"roles": {"prepare": {"memory": "40Gi"}}}).spec) == 38.5 * GIB
    assert probe_bytes(make_job({"roles": {"prepare": {"memory": "1Gi"}}}).spec) == GIB / 4
