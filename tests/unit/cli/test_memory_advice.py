"""What alignctl says of memory and GPUs before a run: what does not fit, and the smallest change that does."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from alignment_api.contract.platform import Gpu, Pool
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import ModelShape
from alignment_api.derived.decoder import Decoder
from alignment_cli.devices import gpu_shortage
from alignment_cli.memory import count_parameters, memory_advice, read_decoder


def spec(**reference: Any) -> AlignmentJobSpec:
    return AlignmentJobSpec.model_validate(
        {
            "model": {"source": "hf://a/b"},
            "data": {"source": "hf://a/b"},
            "algorithm": {"dpo": {}},
            "training": {"precision": "fp32"},
            "roles": {"reference": reference},
        }
    )


def bare(parameters: int) -> Decoder:
    """So many weights, and no activations to speak of."""
    nothing = dict.fromkeys(("hidden", "queries", "keys", "inner", "vocabulary", "embeddings"), 0)
    return Decoder(parameters, ModelShape(layers=10_000, tied=False, **nothing))


def test_memory_that_suffices_is_not_spoken_of() -> None:
    assert memory_advice(spec(), bare(100_000_000), available=5 * 2**30) is None


def test_reference_servers_that_do_not_fit_are_proposed_away() -> None:
    """A billion parameters in fp32 are 4.5 GiB with head-room, of its own a fork has 0.4 GiB, all share 0.6 GiB."""
    advice = memory_advice(spec(replicas=2), bare(10**9), available=8 * 2**30)
    assert advice == (
        "stage prepare needs 10.3 GiB with 1,000,000,000 parameters (reference 2 x 4.9 GiB, shared 0.6 GiB), this "
        "machine has 8.0 GiB free; write spec.roles.reference: {placement: withPolicy}, which needs no server"
    )


def test_a_policy_that_does_not_fit_is_told_so() -> None:
    """28 bytes a parameter, 12 of them a checkpoint's copy, are 31.3 GiB for a billion with head-room."""
    advice = memory_advice(spec(placement="withPolicy"), bare(10**9), available=8 * 2**30)
    assert advice is not None
    assert "stage train needs 32.3 GiB" in advice
    assert "take a smaller model" in advice


def test_the_roles_that_run_together_are_added_up() -> None:
    """A billion parameters, none in products, with head-room: trained in bf16 33.5 GiB, frozen 4.5, served 2.2."""

    def advice(**roles: Any) -> str | None:
        rewards = [{"function": {"numericAnswer": {}}}]
        online = spec().model_dump() | {"algorithm": {"ppo": {"rewards": rewards}}, "roles": roles}
        online["training"]["precision"] = "bf16"
        return memory_advice(AlignmentJobSpec.model_validate(online), bare(10**9), available=32 * 2**30)

    assert advice(rollout={"replicas": 2}) == (
        "stage train needs 83.8 GiB with 1,000,000,000 parameters (actor 33.9 GiB, critic 33.9 GiB, reference 4.9 GiB, "
        "rollout 2 x 5.2 GiB, shared 0.6 GiB), this machine has 32.0 GiB free; "
        "write spec.roles.critic: {placement: withActor}, which saves a process"
    )
    less = advice(critic={"placement": "withActor"}, rollout={"replicas": 2})
    assert less is not None
    assert less.endswith("write replicas: 1 for rollout")


def test_more_roles_than_gpus_are_told_before_they_would_wait_for_ever() -> None:
    rewards = [{"function": {"numericAnswer": {}}}]
    online = AlignmentJobSpec.model_validate(spec().model_dump() | {"algorithm": {"grpo": {"rewards": rewards}}})
    pool = Pool(gpu=Gpu(product="H100-SXM5", memory_gib=80))
    assert gpu_shortage(online, pool, gpus=1, model=bare(10**9)) == (
        "stage train needs 3 GPUs at once (actor 1, reference 1, rollout 1), this machine has 1; ask for fewer, or run "
        "on CPUs alone: CUDA_VISIBLE_DEVICES= alignctl run ..."
    )
    assert gpu_shortage(online, pool, gpus=3, model=bare(10**9)) is None
    assert gpu_shortage(spec(), pool, gpus=1, model=bare(10**9)) is None


def test_parameters_are_counted_from_the_heads_of_files(tmp_path: Path) -> None:
    save_file(
        {"a": np.zeros((3, 5), np.float32), "b": np.zeros(7, np.float16)}, tmp_path / "one.safetensors", {"k": "v"}
    )
    save_file({"c": np.zeros((2, 2), np.float32)}, tmp_path / "two.safetensors")
    assert count_parameters(tmp_path) == 15 + 7 + 4
    assert count_parameters(tmp_path / "empty") is None
    assert struct.calcsize("<Q") == 8


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[1]", json.dumps({"num_attention_heads": 0}).encode(), b'{"head_dim": "wide"}']
)
def test_a_config_that_is_damaged_ends_no_command_before_prepare_names_it(tmp_path: Path, content: bytes) -> None:
    save_file({"a": np.zeros((4, 3), np.float32)}, tmp_path / "model.safetensors")
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2, "vocab_size": 400}
    said = json.dumps(sizes | json.loads(content)).encode() if content.startswith(b"{") else content
    (tmp_path / "config.json").write_bytes(said)
    assert read_decoder(tmp_path) == Decoder.of(12)


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\xff" * 9, struct.pack("<Q", 4) + b"[1]!", struct.pack("<Q", 2) + b"[]"]
)
def test_weights_that_are_damaged_are_not_counted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert count_parameters(tmp_path) is None
