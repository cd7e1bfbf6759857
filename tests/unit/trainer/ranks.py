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


def run_ranks(
    ranks: int, call: str, timeout: float = 1100, collective_timeout: float = 1800, **arguments: Any
) -> list[Any]:
    """What `module:function` returned (as JSON) on every rank, given keyword `arguments`; stops all when one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT / "trainer"), str(ROOT / "operator")]),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        COLLECTIVE_TIMEOUT: str(collective_timeout),
    }
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


def main() -> None:
    import importlib

    import torch

    from alignment_trainer.process.distributed import process_group
    from alignment_trainer.process.outcome import end_process

    module, _, function = sys.argv[1].partition(":")
    torch.set_num_threads(1)
    timeout = timedelta(seconds=float(os.environ[COLLECTIVE_TIMEOUT]))
    with process_group(torch.device("cpu"), timeout):
        result = getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2]))
    print(json.dumps(result))
    end_process(0)


if __name__ == "__main__":
    main()
