"""The entry of every role's process: `ALIGNMENT_CONTEXT` says who it is, the job file what to do."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import cast

from alignment_api.contract.context import CONTEXT_VARIABLE, Context, Outcome
from alignment_api.contract.job import AlignmentJob
from alignment_api.yaml.manifest import InvalidManifest, read_begun_manifest
from alignment_trainer.process import launch
from alignment_trainer.process.compiled_code import keep_compiled_code
from alignment_trainer.process.cores import threads_per_process
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.logs import configure_logs, quiet_libraries
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.outcome import EXIT_CODES, clear_outcome, end_process, outcome_of_error, write_outcome
from alignment_trainer.process.paths import check_paths
from alignment_trainer.process.status_board import StatusBoard
from alignment_trainer.process.status_server import StatusServer

log = logging.getLogger(__name__)

RoleFunction = Callable[[Instance], Outcome]
ROLES = {
    "prepare": "alignment_trainer.roles.prepare",
    "reference": "alignment_trainer.roles.reference",
    "policy": "alignment_trainer.roles.policy",
    "actor": "alignment_trainer.roles.actor",
    "critic": "alignment_trainer.roles.critic",
    "reward": "alignment_trainer.roles.reward",
    "rollout": "alignment_trainer.roles.rollout",
    "evaluator": "alignment_trainer.roles.evaluator",
}
"""Role -> module with its `run(instance) -> Outcome`. By name: the server answers while torch is being loaded."""


class TooFewGPUs(RuntimeError):
    """The instance was planned with more GPUs than it finds."""


def main() -> None:
    """Runs the role of `ALIGNMENT_CONTEXT`; exits 0 (succeeded), 143 (asked to go, state saved) or 1 (failed)."""
    text = os.environ.get(CONTEXT_VARIABLE)
    if not text:
        sys.exit(
            f"alignment-trainer is started by a runtime, which sets {CONTEXT_VARIABLE}; try `alignctl run job.yaml`"
        )
    context = Context.model_validate_json(text, extra="ignore")  # its runtime may be of a newer release
    labels: dict[str, str | int] = {
        "job": context.job,
        "role": context.role,
        "index": context.index,
        "life": context.life,
    }
    if launch.is_rank():
        labels["rank"] = int(os.environ["RANK"])
    configure_logs(labels)
    outcome = _run_rank(context) if launch.is_rank() else _run_instance(context)
    end_process(EXIT_CODES[outcome.result])


def _run_instance(context: Context) -> Outcome:
    """The whole instance, in this process or as torchrun; its outcome is written."""
    path = Path(context.outcome_file)
    clear_outcome(path)
    try:
        _check_gpus(context)
        outcome = launch.run_gang(context) if launch.is_gang(context) else _run_role(context, serves=True)
    except Exception as error:
        log.exception("%s failed", context.role)
        outcome = outcome_of_error(error)
    write_outcome(path, outcome)
    return outcome


def _run_rank(context: Context) -> Outcome:
    """One rank under torchrun; its outcome goes to the process that started torchrun."""
    try:
        outcome = _run_role(context, serves=os.environ["RANK"] == "0")
    except Exception as error:
        log.exception("rank %s failed", os.environ["RANK"])
        outcome = outcome_of_error(error)
    launch.write_rank_outcome(outcome)
    return outcome


def _run_role(context: Context, serves: bool) -> Outcome:
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_process(1)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the cores from a laptop's other roles
    keep_compiled_code(context)
    stop, board, metrics = Interruption(), StatusBoard(context), Metrics(context.job, context.role)
    token = Path(context.token_file).read_text().strip()
    server = StatusServer((context.host, context.port), token, board, metrics.registry) if serves else None
    with stop.on_signals(), server or nullcontext():
        try:
            job = _read_job(Path(context.job_file))
            check_paths(context, job.spec)
            quiet_libraries()
            role = cast(RoleFunction, importlib.import_module(ROLES[context.role]).run)
            return role(_settled(Instance(context, job, board, metrics, stop, server)))
        except Exception as error:
            log.exception("%s failed", context.role)
            return outcome_of_error(error, board.read().checkpoint)


def _settled(instance: Instance) -> Instance:
    """`prepare` decides itself what the others find settled."""
    from alignment_trainer.model import micro_batch, precision  # they load torch, which the role has done by now

    return instance if instance.context.role == "prepare" else micro_batch.settled(precision.settled(instance))


def _read_job(path: Path) -> AlignmentJob:
    try:
        return read_begun_manifest(path.read_text(), path.name)
    except InvalidManifest as error:
        raise UserError("InvalidSpec", str(error)) from error


def _check_gpus(context: Context) -> None:
    """Fails at once on a paid node whose GPUs are not there; nothing falls back to the CPU."""
    if not context.gpus:
        return
    import torch

    if (found := torch.cuda.device_count()) < context.gpus:
        raise TooFewGPUs(
            f"planned with {context.gpus} GPUs, found {found}; check the pool's gpu resource, the node's driver and "
            "the image's CUDA version"
        )


if __name__ == "__main__":
    main()
