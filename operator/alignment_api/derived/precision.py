"""bf16 or fp32: one answer for all roles of a job, by the devices that it trains on.

What a spec leaves open (`auto`) is known at once where those are GPUs, which the platform describes. Of CPUs nobody
knows before `prepare` has looked at its own; then status has the answer.
"""

from __future__ import annotations

from alignment_api.contract.platform import Gpu, Platform
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import Precision, PrecisionReport


def training_gpu(spec: AlignmentJobSpec, platform: Platform) -> Gpu | None:
    """The GPUs that the job trains on; None where it trains on CPUs."""
    trainee = spec.roles.actor if spec.algorithm.online else spec.roles.policy
    return platform.pools.named(trainee.placement).gpu


def of_gpu(gpu: Gpu) -> Precision:
    """What `auto` means on such GPUs."""
    return "bf16" if gpu.bf16 else "fp32"


def with_precision(spec: AlignmentJobSpec, precision: Precision) -> AlignmentJobSpec:
    """The spec as if it named the precision."""
    training = spec.training.model_copy(update={"precision": precision})
    return spec.model_copy(update={"training": training})


def as_far_as_known(
    spec: AlignmentJobSpec, platform: Platform, recorded: PrecisionReport | None = None
) -> AlignmentJobSpec:
    """The spec with the precision that the job has or will have; `auto` where only `prepare` can tell."""
    if spec.training.precision != "auto":
        return spec
    if recorded is not None:
        return with_precision(spec, recorded.value)
    gpu = training_gpu(spec, platform)
    return spec if gpu is None else with_precision(spec, of_gpu(gpu))
