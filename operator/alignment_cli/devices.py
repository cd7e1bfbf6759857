"""Whether a job's processes find GPUs of their own on this machine, before they start."""

from __future__ import annotations

from alignment_api.contract.platform import Pool
from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.role_memory import replicas_of
from alignment_api.derived.sizing import size_of
from alignment_api.derived.stages import stages_of


def gpu_shortage(spec: AlignmentJobSpec, pool: Pool, gpus: int, model: Decoder | None) -> str | None:
    """Why a stage could never start with all of its roles; None where every one finds its GPUs.

    A process has its GPUs alone, so that one which waits for another's would wait for ever.
    """
    for stage in stages_of(spec):
        wanted = {role: replicas_of(spec, role) * size_of(spec, role, pool, model).gpus for role in stage.roles}
        if sum(wanted.values()) > gpus:
            what = ", ".join(f"{role} {count}" for role, count in wanted.items() if count)
            return (
                f"stage {stage.name} needs {sum(wanted.values())} GPUs at once ({what}), this machine has {gpus}; "
                "ask for fewer, or run on CPUs alone: CUDA_VISIBLE_DEVICES= alignctl run ..."
            )
    return None
