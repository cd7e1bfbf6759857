"""What a job with adapters (training.lora) cannot have: whatever has not been proven with them. Rows of the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.rules.rule import Rule

_LORA: dict[str, Any] = {"training": {"lora": {}}}
_ABSENT = "!has(self.training) || !has(self.training.lora)"


def adapter_rules() -> tuple[Rule, ...]:
    """One for each of what is refused beside them."""
    online: dict[str, Any] = {"grpo": {"rewards": [{"function": {"numericAnswer": {}}}]}}
    return (
        _refused(
            "ppo and grpo train whole models, and so does their stage `reward`: remove lora",
            lambda spec: f"adapters in a job of {spec.algorithm.name}" if spec.algorithm.online else None,
            "!(has(self.algorithm.ppo) || has(self.algorithm.grpo))",
            {"algorithm": online},
            ("training", "lora"),
        ),
        _refused(
            "DeepSpeed trains whole models: write fsdp2, or leave sharding out",
            lambda spec: f"{kind} with lora" if (kind := spec.training.sharding) in ("zero2", "zero3") else None,
            "!has(self.training.sharding) || !(self.training.sharding in ['zero2', 'zero3'])",
            {"training": {"lora": {}, "sharding": "zero2"}},
            ("training", "sharding"),
        ),
        _refused(
            "adapters begin at the model as it came: leave resumeFrom out, and write the other job's exported model as "
            "`model: {source: ...}`",
            lambda spec: f"{source} with lora" if (source := spec.checkpoint.resume_from) else None,
            "!has(self.checkpoint) || !has(self.checkpoint.resumeFrom)",
            {"checkpoint": {"resumeFrom": "pvc://runs/first"}},
            ("checkpoint", "resumeFrom"),
        ),
    )


def _refused(
    message: str,
    found: Callable[[AlignmentJobSpec], str | None],
    cel: str,
    example: dict[str, Any],
    field: tuple[str, ...],
) -> Rule:
    """found, cel: of a job that has adapters."""
    return Rule(
        AlignmentJobSpec,
        message,
        lambda spec: found(spec) if spec.training.lora is not None else None,
        f"{_ABSENT} || {cel}",
        {"spec": _LORA | example},
        field,
    )
