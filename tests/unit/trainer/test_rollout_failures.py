"""Why vLLM did not start is told by the field of the spec that is to blame. The logs are vLLM's own, of 0.31."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignment_trainer.process.errors import UserError
from alignment_trainer.vllm.failures import EngineFailed, error_log, explain_death, explain_start

VAGUE = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
SMALL_CACHE = """EngineCore failed to start.
Traceback (most recent call last):
  File "core.py", line 1420, in run_engine_core
ValueError: To serve at least one request with the model's max seq len (512), (0.0 GiB KV cache is needed, which is \
larger than the available KV cache memory (0.0 GiB). Based on the available memory, the estimated maximum model length \
is 256. Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when initializing the engine.
"""
SMALL_HEADS = """WorkerProc hit an exception.
Traceback (most recent call last):
RuntimeError: Unsupported CPU attention configuration: head_dim=16 isa=2 kv_cache_idx=0
AsyncLLM output_handler failed.
vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
"""
LITTLE_MEMORY = """EngineCore failed to start.
ValueError: Available memory on node 0 (1.5/2.0 GiB) on kv cache allocation is less than requested memory for kv \
(4.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other processes.
"""


@pytest.mark.parametrize(
    ("log", "reason", "told"),
    [
        (SMALL_CACHE, "InvalidSpec", "spec.roles.rollout.kvCacheMemory: vLLM: ValueError: To serve at least one"),
        (SMALL_CACHE, "InvalidSpec", "maximum model length is 256; raise it, or lower spec.training.maxLength"),
        (LITTLE_MEMORY, "InvalidSpec", "lower it, or raise spec.roles.rollout.memory"),
        (SMALL_HEADS, "UnsupportedModel", "spec.model.source: vLLM: RuntimeError: Unsupported CPU attention"),
    ],
)
def test_a_mistake_in_the_spec_is_told_by_its_field(tmp_path: Path, log: str, reason: str, told: str) -> None:
    error_log(tmp_path).write_text(log)
    explained = explain_start(VAGUE, tmp_path)
    assert isinstance(explained, UserError)
    assert explained.reason == reason
    assert told in str(explained)


def test_without_vllm_it_says_what_to_install(tmp_path: Path) -> None:
    explained = explain_start(ModuleNotFoundError("No module named 'vllm'"), tmp_path)
    assert isinstance(explained, UserError)
    assert "install alignment-operator[rollout]" in str(explained)


@pytest.mark.parametrize("log", ["", "RuntimeError: CUDA error: operation not supported\n"])
def test_what_may_pass_is_no_mistake_of_the_user(tmp_path: Path, log: str) -> None:
    error_log(tmp_path).write_text(log)
    assert isinstance(explain_start(VAGUE, tmp_path), EngineFailed)


def test_who_has_served_dies_of_no_mistake_in_the_spec(tmp_path: Path) -> None:
    error_log(tmp_path).write_text(SMALL_HEADS)
    assert "head_dim=16" in str(explain_death(VAGUE, tmp_path))
