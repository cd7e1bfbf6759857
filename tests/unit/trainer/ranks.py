"""Runs a function of a test module in several processes joined by gloo."""

import json
import os
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
COLLECTIVE_TIMEOUT = "TEST_COLLECTIVE_TIMEOUT"
"""Environment variable: seconds."""
PATIENCE = 1100.0
"""Seconds for whatever the ranks do: a bound for those that hang, far from any speed."""


def run_ranks(
    ranks: int, call: str, timeout: float = PATIENCE, collective_timeout: float = 1800, **arguments: Any
) -> list[Any]:
    """What `module:function` returned (as JSON) on every rank, given keyword `arguments`; stops all when one fails."""
    paths = os.pathsep.join([str(HERE), str(ROOT / "trainer"), str(ROOT / "operator")])
    environment = os.environ | {"PYTHONPATH": paths} | _gang(ranks, collective_timeout)
    command = [sys.executable, str(HERE / "ranks.py"), call, json.dumps(arguments)]
    processes = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, error) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, error[-4000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def fork_ranks(ranks: int, call: str, **arguments: Any) -> None:
    """The same in processes that have torch already, for functions that return nothing."""
    from roles import forkserver

    gang = _gang(ranks, PATIENCE)
    processes = [
        forkserver.Process(
            target=_run_forked,
            args=(gang | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, call, arguments),
            daemon=True,
        )
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(PATIENCE)
            assert process.exitcode == 0, f"{call} on {ranks} ranks: a rank ended with {process.exitcode}"
    finally:
        for process in processes:
            process.kill()
            process.join()


def _gang(ranks: int, collective_timeout: float) -> dict[str, str]:
    """What torchrun would tell each rank, but for its number."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        COLLECTIVE_TIMEOUT: str(collective_timeout),
    }


def _run_forked(environment: dict[str, str], call: str, arguments: dict[str, Any]) -> None:
    from alignment_trainer.process.outcome import end_process

    os.environ.update(environment)
    _call(call, arguments)
    end_process(0)


def _call(call: str, arguments: dict[str, Any]) -> Any:
    import importlib

    import torch

    from alignment_trainer.process.distributed import process_group

    module, _, function = call.partition(":")
    torch.set_num_threads(1)
    timeout = timedelta(seconds=float(os.environ[COLLECTIVE_TIMEOUT]))
    with process_group(torch.device("cpu"), timeout):
        return getattr(importlib.import_module(module), function)(**arguments)


def main() -> None:
    from alignment_trainer.process.outcome import end_process

    result = _call(sys.argv[1], json.loads(sys.argv[2]))
    print(json.dumps(result))
    end_process(0)


if __name__ == "__main__":
    main()
