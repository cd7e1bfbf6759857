"""Runs a function of a test module in several processes joined by gloo, forked from one that has torch already."""

from __future__ import annotations

import importlib
import os
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from roles import forkserver

PATIENCE = 1100.0
"""Seconds for whatever the ranks do: a bound for those that hang, far from any speed."""


class RankFailed(AssertionError):
    """A rank raised, or ended without a word."""


class Rank(NamedTuple):
    """A process of a gang, and the end of the pipe that takes what it returned."""

    process: Any
    taken: Connection


def run_ranks(ranks: int, call: str, collective_timeout: float = 1800, **arguments: Any) -> list[Any]:
    """What `module:function` returned on every rank, given keyword `arguments`; stops all when one fails.

    Raises RankFailed with the first rank's traceback, in order of rank.
    """
    with gang(ranks, call, collective_timeout, **arguments) as started:
        return returned(started)


@contextmanager
def gang(ranks: int, call: str, collective_timeout: float = 1800, **arguments: Any) -> Iterator[list[Rank]]:
    """So many processes that run it, for who waits for them in another way; killed at the end where they live."""
    environment = _environment(ranks)
    ends = [forkserver.Pipe(duplex=False) for _ in range(ranks)]
    processes = [
        forkserver.Process(
            target=_run,
            args=(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, call, collective_timeout, arguments, end),
            daemon=True,
        )
        for rank, (_, end) in enumerate(ends)
    ]
    try:
        for process, (_, given) in zip(processes, ends, strict=True):
            process.start()
            given.close()
        yield [Rank(process, taken) for process, (taken, _) in zip(processes, ends, strict=True)]
    finally:
        for process in processes:
            process.kill()
            process.join()


def returned(started: list[Rank]) -> list[Any]:
    """What every rank returned. Raises RankFailed."""
    return [_received(number, rank.taken) for number, rank in enumerate(started)]


def _received(rank: int, taken: Connection) -> Any:
    if not taken.poll(PATIENCE):
        raise RankFailed(f"rank {rank} is not done after {PATIENCE:g} s")
    try:
        failed, result = taken.recv()
    except EOFError:
        raise RankFailed(f"rank {rank} ended without a word") from None
    if failed:
        raise RankFailed(f"rank {rank}: {result}")
    return result


def _environment(ranks: int) -> dict[str, str]:
    """What torchrun would tell each rank, but for its number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def _run(
    environment: dict[str, str], call: str, collective_timeout: float, arguments: dict[str, Any], given: Connection
) -> None:
    from alignment_trainer.process.outcome import end_process

    os.environ.update(environment)
    try:
        given.send((False, _call(call, collective_timeout, arguments)))
    except Exception:
        given.send((True, traceback.format_exc()))
    given.close()
    end_process(0)


def _call(call: str, collective_timeout: float, arguments: dict[str, Any]) -> Any:
    import torch

    from alignment_trainer.process.distributed import process_group

    module, _, function = call.partition(":")
    torch.set_num_threads(1)
    with process_group(torch.device("cpu"), timedelta(seconds=collective_timeout)):
        return getattr(importlib.import_module(module), function)(**arguments)
