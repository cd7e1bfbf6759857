"""In which numbers a job computes: `prepare` decides once, every other role takes what its manifest says."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch

from alignment_api.contract.platform import Gpu
from alignment_api.contract.roles import ROLES
from alignment_api.contract.status import PrecisionReport
from alignment_api.derived.precision import with_precision
from alignment_trainer.data.pins import manifest_of, pins_of
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.instance import Instance

log = logging.getLogger(__name__)

_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Instructions of a CPU that multiply bf16, as torch calls them: the first two of x86, the others of Arm."""
_CAPABILITY = (8, 0)
"""CUDA compute capability from which on bf16 is in hardware (Ampere)."""
_SLOWER = "5 to 10 times slower than fp32"
"""A product in emulated bf16 on one core with AVX2: 4 to 18 GFLOP/s, in fp32 26 to 90."""


CASTS = {"bf16": True, "fp32": False}
"""Precision -> whether products are cast. `auto` is none: what it means is settled before a role begins."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """bf16: fp32 master weights, products in bf16. fp32: everything as it is. Raises KeyError for anything else."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if CASTS[precision] else nullcontext()


class PrecisionUndecided(RuntimeError):
    """The spec leaves the precision open and `prepare` has not decided it yet."""


def cpu_has_bf16() -> bool:
    """Whether bf16 is in this CPU's hardware, and oneDNN uses it.

    oneDNN alone also says yes to AVX-512 without such instructions, where its products in bf16 take 2.4 times as long
    as in fp32. ONEDNN_MAX_CPU_ISA=AVX2 hides the hardware from oneDNN's products and from this answer alike.
    """
    capabilities = torch.cpu.get_capabilities()
    there = any(capabilities.get(name, False) for name in _INSTRUCTIONS)
    return there and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def decide(written: str, gpu: Gpu | None, cpu: bool) -> PrecisionReport:
    """What a job computes in. Of CPUs the one that `prepare` runs on stands for all.

    written: spec.training.precision. gpu: those that the job trains on; None for CPUs. cpu: whether this one has bf16.
    """
    what = f"the job trains on {gpu.product}, which" if gpu else "the CPU of `prepare`"
    has_bf16 = gpu.bf16 if gpu else cpu
    if written == "auto":
        there = "has bf16 in hardware" if has_bf16 else "has no bf16 in hardware"
        return PrecisionReport(value="bf16" if has_bf16 else "fp32", why=f"{what} {there}")
    why = f"spec.training.precision is {written}"
    if written == "bf16" and not has_bf16:
        why += f"; {what} has no bf16 in hardware and emulates it, {'much slower' if gpu else _SLOWER}"
    return PrecisionReport.model_validate({"value": written, "why": why})


def decided(instance: Instance) -> tuple[Instance, PrecisionReport]:
    """`prepare` as it goes on, with what it decided, or an earlier life of it did: the answer never changes."""
    written, former = instance.spec.training.precision, recorded(instance)
    gpu, cpu = instance.context.training_gpu, cpu_has_bf16()
    report = former if former and written in ("auto", former.value) else decide(written, gpu, cpu)
    if written == "bf16" and not (gpu.bf16 if gpu else cpu):
        log.warning("%s", report.why)
    return _with(instance, report), report


def settled(instance: Instance) -> Instance:
    """Any other role as it goes on, with what `prepare` decided; it warns where its own device only emulates that.

    Raises PrecisionUndecided; UserError where GPUs that were said to have bf16 lack it.
    """
    written = instance.spec.training.precision
    if written != "auto":
        report: PrecisionReport | None = PrecisionReport.model_validate({"value": written, "why": "the spec says so"})
    else:
        report = recorded(instance) or _told(instance)
    if report is None:
        raise PrecisionUndecided("spec.training.precision is `auto`, and stage `prepare` has not decided what that is")
    if report.value == "bf16" and ROLES[instance.context.role].accelerated:
        _check_device(instance)
    return _with(instance, report)


def recorded(instance: Instance) -> PrecisionReport | None:
    """What an earlier life decided, if any. Stage `reward` has a manifest of its own; it is the first that is left."""
    own = (manifest_of(instance.at_stage(stage)) for stage in ("prepare", "reward"))
    return next((manifest.precision for manifest in own if manifest is not None), None)


def _told(instance: Instance) -> PrecisionReport | None:
    """For a role that has no storage."""
    pins = pins_of(instance)
    return pins.precision if pins is not None else None


def _check_device(instance: Instance) -> None:
    if instance.context.gpus == 0:
        if not cpu_has_bf16():
            log.warning("this CPU has no bf16 in hardware and emulates it, %s; this job computes in bf16", _SLOWER)
        return
    found = torch.cuda.get_device_capability(0)
    if found < _CAPABILITY and instance.spec.training.precision == "auto":
        raise UserError(
            "NoBf16",
            f"spec.training.precision: `auto` took bf16, which the platform says the GPUs that train have, but the "
            f"{torch.cuda.get_device_name(0)} of role {instance.context.role} has compute capability "
            f"{found[0]}.{found[1]}, below 8.0, and none; write fp32, or set `bf16: false` for the gpu of its pool",
        )
    if found < _CAPABILITY:
        log.warning("this GPU has no bf16 in hardware and emulates it; write spec.training.precision: fp32")


def _with(instance: Instance, report: PrecisionReport) -> Instance:
    job = instance.job
    return replace(instance, job=job.model_copy(update={"spec": with_precision(job.spec, report.value)}))
