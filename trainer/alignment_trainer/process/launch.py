"""A trainable role with more than one rank: this process becomes torchrun, its children the ranks.

The ranks leave their outcomes in a folder; this process turns them into the instance's one outcome and exit code,
because torchrun's own says no more than 0 or 1.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from alignment_api.contract.context import Context, Failure, Outcome
from alignment_api.contract.roles import ROLES
from alignment_trainer.process.cores import threads_per_process
from alignment_trainer.process.outcome import EXIT_CODES, end_process, write_outcome

log = logging.getLogger(__name__)

RANK_OUTCOMES = "ALIGNMENT_RANK_OUTCOMES"
"""Environment variable of a rank: the folder for its outcome."""
_LOOPBACK = ("127.0.0.1:", "localhost:", "[::1]:")
RENDEZVOUS_SECONDS = 30 * 24 * 3600
"""How long a gang waits for its last pod: as long as the plan does, which ends it by spec.readyDeadlineSeconds. A
timeout of torchrun's own would make a failure of a cluster that is short of nodes."""
_EXIT_MARGIN_SECONDS = 3
"""Kept of the notice for writing the outcome after the ranks have gone."""


def is_gang(context: Context) -> bool:
    """Whether this instance is more than one rank, or one of several such instances. Frozen roles never are."""
    return ROLES[context.role].trainable and context.replicas * context.processes > 1


def is_rank() -> bool:
    """True in a process that torchrun started."""
    return RANK_OUTCOMES in os.environ


def write_rank_outcome(outcome: Outcome) -> None:
    write_outcome(Path(os.environ[RANK_OUTCOMES]) / f"{int(os.environ['RANK']):05d}.json", outcome)


def run_gang(context: Context) -> Outcome:
    """Runs this instance's ranks to their end."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    with tempfile.TemporaryDirectory(prefix="alignment-ranks-") as folder:
        os.environ[RANK_OUTCOMES] = folder
        os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_process(context.processes)))
        if sys.platform == "linux" and context.rendezvous.startswith(_LOOPBACK):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a laptop's hostname may not resolve
        died: dict[int, int] = {}
        signalled = False
        try:
            with _goes_when_asked(Path(context.outcome_file)):
                torchrun(torchrun_arguments(context))
        except SignalException as error:
            signalled = True
            log.info("the ranks were asked to go: %s", signal.Signals(error.sigval).name)
        except ChildFailedError as error:
            died = {rank: failure.exitcode for rank, failure in error.failures.items()}
        return merge_outcomes(_read_outcomes(Path(folder)), _not_by_torchrun(died, Path(folder), context), signalled)


@contextmanager
def _goes_when_asked(outcome_file: Path) -> Iterator[None]:
    """Obeys SIGTERM as long as torchrun does not: it waits for the gang's other pods in C++, where no handler of Python
    is called, and as process 1 of a container it would sit out its whole notice."""

    def is_left_to_torchrun(_number: int, _frame: FrameType | None) -> None:
        """In force until torchrun has started ranks and set its own."""

    def watch() -> None:
        while os.read(reader, 1):
            if signal.getsignal(signal.SIGTERM) is is_left_to_torchrun:
                write_outcome(outcome_file, Outcome(result="interrupted"))
                end_process(EXIT_CODES["interrupted"])
        os.close(reader)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGTERM, is_left_to_torchrun)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="goes-when-asked", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)
        os.close(writer)
        signal.signal(signal.SIGTERM, before)


def torchrun_arguments(context: Context) -> list[str]:
    """The command line of torchrun for this instance."""
    host, _, port = context.rendezvous.rpartition(":")
    return [
        f"--nnodes={context.replicas}",
        f"--node-rank={context.index}",
        f"--nproc-per-node={context.processes}",
        f"--master-addr={host.strip('[]')}",
        f"--master-port={port}",
        f"--rdzv-conf=timeout={RENDEZVOUS_SECONDS}",
        f"--shutdown-timeout={_shutdown_seconds(context)}",
        "--max-restarts=0",
        "-m",
        "alignment_trainer.main",
    ]


def _shutdown_seconds(context: Context) -> int:
    return max(1, context.notice_seconds - _EXIT_MARGIN_SECONDS)


def _not_by_torchrun(died: dict[int, int], folder: Path, context: Context) -> dict[int, int]:
    """Exit codes without the deaths that torchrun dealt out itself once a rank had failed.

    It sends the others SIGTERM at once, and SIGKILL where they have not gone within the shutdown timeout.
    """
    first_end = min((path.stat().st_mtime for path in folder.glob("*.json")), default=time.time())
    dealt = {-signal.SIGTERM}
    if time.time() - first_end >= _shutdown_seconds(context):
        dealt.add(-signal.SIGKILL)
    return {rank: code for rank, code in died.items() if code not in dealt}


def merge_outcomes(outcomes: list[Outcome], died: dict[int, int], signalled: bool) -> Outcome:
    """The instance's outcome from those of its ranks, in the order in which they were written.

    died: exit codes of ranks that torchrun calls failed, negative for a signal. What any rank saved is saved.
    """
    saved = [outcome.checkpoint for outcome in outcomes if outcome.checkpoint is not None]
    newest = max(saved, key=lambda checkpoint: checkpoint.verified_at, default=None)
    return _cause(outcomes, died, signalled).model_copy(update={"checkpoint": newest})


def _cause(outcomes: list[Outcome], died: dict[int, int], signalled: bool) -> Outcome:
    """A rank that a signal killed is the cause, whatever its peers complained of then; else the first failure is; else
    what the lowest rank says."""
    killed = {rank: -code for rank, code in died.items() if code < 0}
    if killed and not signalled:
        rank, number = min(killed.items())
        hint = "; most often the memory ran out" if number == signal.SIGKILL else ""
        message = f"rank {rank} of the instance was killed by {signal.Signals(number).name}{hint}"
        return Outcome(result="failed", failure=Failure(reason="RankKilled", message=message, retryable=True))
    for outcome in outcomes:
        if outcome.result == "failed":
            return outcome
    if outcomes:
        return max(outcomes, key=lambda outcome: outcome.step or -1)
    if signalled:
        return Outcome(result="interrupted")
    message = f"no rank left an outcome; exit codes by rank: {died}; see the instance's log"
    return Outcome(result="failed", failure=Failure(reason="RanksLost", message=message, retryable=True))


def _read_outcomes(folder: Path) -> list[Outcome]:
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return [Outcome.model_validate_json(path.read_text()) for path in paths]
