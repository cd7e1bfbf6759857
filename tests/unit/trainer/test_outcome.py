"""How a role ends is told in 4096 bytes, and the cause is told rather than its echo."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import create_rdzv_handler
from torch.distributed.run import config_from_args, parse_args

from alignment_api.contract.context import Context, Failure, Outcome
from alignment_api.contract.status import CheckpointStatus
from alignment_trainer.process.cores import available_cores
from alignment_trainer.process.errors import UserError, failure_of
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.launch import merge_outcomes, torchrun_arguments
from alignment_trainer.process.outcome import clear_outcome, outcome_of_error, write_outcome


def failed(reason: str) -> Outcome:
    return Outcome(result="failed", failure=Failure(reason=reason, message="m", retryable=True))


def test_a_users_mistake_is_not_retried() -> None:
    failure = failure_of(UserError("InvalidData", "pairs.jsonl:3: `rejected` is missing"))
    assert (failure.reason, failure.retryable) == ("InvalidData", False)
    assert failure.message == "pairs.jsonl:3: `rejected` is missing"


def test_a_bug_is_retried_under_its_own_name() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        print(1 / 0)
    failure = failure_of(caught.value)
    assert (failure.reason, failure.retryable) == ("ZeroDivisionError", True)
    assert "test_outcome.py:" in failure.message


def test_memory_that_ran_out_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    for error in (caught.value, torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError()):
        failure = failure_of(error)
        assert (failure.reason, failure.retryable) == ("OutOfMemory", True)
        assert "microBatchTokens" in failure.message


def test_a_disk_that_ran_full_is_recognised() -> None:
    failure = failure_of(OSError(errno.ENOSPC, "No space left on device"))
    assert failure.reason == "StorageFull"
    assert "spec.checkpoint.keep" in failure.message


def test_a_file_that_may_not_be_read_ends_the_job_and_names_the_user() -> None:
    failure = failure_of(PermissionError(errno.EACCES, "Permission denied", "/volumes/models/tiny/model.safetensors"))
    assert not failure.retryable
    assert "'/volumes/models/tiny/model.safetensors'" in failure.message
    assert f"user {os.getuid()}" in failure.message


def test_a_long_message_is_cut_to_what_kubernetes_keeps(tmp_path: Path) -> None:
    failure = Failure(reason="InvalidData", message="12 of 20 rows\n" + "ü" * 9000, retryable=False)
    write_outcome(tmp_path / "outcome", Outcome(result="failed", failure=failure))
    text = (tmp_path / "outcome").read_bytes()
    assert 3000 < len(text) <= 4096
    read = Outcome.model_validate_json(text)
    assert read.failure is not None
    assert read.failure.message.startswith("12 of 20 rows\nü")
    assert read.failure.message.endswith(" ...")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_mounted_outcome_file_is_written_in_place(tmp_path: Path) -> None:
    """A pod's termination message is a bind mount: it cannot be replaced by another file."""
    (tmp_path / "host").write_text("x" * 100)
    (tmp_path / "log").touch()
    script = (
        "import sys, pathlib; from alignment_api.contract.context import Outcome; "
        "from alignment_trainer.process.outcome import *; "
        "p = pathlib.Path(sys.argv[1]); clear_outcome(p); write_outcome(p, Outcome(result='succeeded', step=3))"
    )
    mounted = 'mount --bind "$0/host" "$0/log" && exec "$1" -c "$2" "$0/log"'
    subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, str(tmp_path), sys.executable, script],
        check=True,
        timeout=600,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert Outcome.model_validate_json((tmp_path / "host").read_text()).step == 3


def test_an_earlier_lifes_outcome_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "outcome"
    clear_outcome(path)
    assert not path.exists()
    write_outcome(path, failed("Old"))
    clear_outcome(path)
    assert path.read_bytes() == b""


def test_a_process_ends_with_what_it_has_said_and_without_finalization() -> None:
    """Finalization is where a thread of gloo would abort it."""
    script = (
        "import atexit, os, sys; from alignment_trainer.process.outcome import end_process; "
        "atexit.register(os.abort); print('said'); print('complained', file=sys.stderr); end_process(143)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (143, "said\n", "complained\n")


def test_the_first_failure_of_a_gang_is_its_outcome() -> None:
    outcomes = [failed("OutOfMemory"), Outcome(result="interrupted", step=4), failed("RuntimeError")]
    assert merge_outcomes(outcomes, {0: 1, 1: 143, 2: 1}, signalled=False) == outcomes[0]


def test_a_killed_rank_is_the_cause_whatever_its_peers_complain_of() -> None:
    outcome = merge_outcomes([failed("RuntimeError")], {0: 1, 1: -signal.SIGKILL}, signalled=False)
    assert outcome.failure is not None
    assert outcome.failure.reason == "RankKilled"
    assert "rank 1 of the instance was killed by SIGKILL; most often the memory ran out" in outcome.failure.message


def test_what_a_rank_has_saved_is_told_whichever_rank_is_the_cause() -> None:
    saved = [CheckpointStatus(step=step, verified_at=datetime(2026, 1, 1, step, tzinfo=UTC)) for step in (4, 8)]
    told = [outcome_of_error(RuntimeError("a peer went"), checkpoint) for checkpoint in saved]
    died = {0: 1, 1: -signal.SIGKILL}
    assert merge_outcomes([failed("Odd"), *told], {0: 1}, signalled=False).checkpoint == saved[1]
    killed = merge_outcomes(told, died, signalled=False)
    assert killed.failure is not None
    assert (killed.failure.reason, killed.checkpoint) == ("RankKilled", saved[1])


def test_a_gang_that_was_asked_to_go_is_interrupted_at_its_step() -> None:
    outcomes = [Outcome(result="interrupted", step=7), Outcome(result="interrupted", step=7)]
    assert merge_outcomes(outcomes, {}, signalled=True) == outcomes[0]
    assert merge_outcomes([], {}, signalled=True) == Outcome(result="interrupted")


def test_ranks_that_leave_nothing_are_a_failure() -> None:
    outcome = merge_outcomes([], {0: 1}, signalled=False)
    assert outcome.result == "failed"
    assert outcome.failure is not None
    assert "exit codes by rank: {0: 1}" in outcome.failure.message


def test_a_gang_waits_for_its_last_pod_as_long_as_the_plan_does() -> None:
    context = Context.model_construct(rendezvous="first:29500", replicas=2, index=0, processes=1, notice_seconds=30)
    config = config_from_args(parse_args(torchrun_arguments(context)))[0]
    parameters = RendezvousParameters("static", config.rdzv_endpoint, "run", 2, 2, **config.rdzv_configs)
    assert create_rdzv_handler(parameters).timeout == timedelta(days=30)


def test_a_gang_that_waits_for_its_last_pod_goes_when_it_is_asked(tmp_path: Path) -> None:
    script = (
        "import json, sys; from alignment_api.contract.context import Context; "
        "from alignment_trainer.process.launch import run_gang; "
        "run_gang(Context.model_construct(**json.loads(sys.argv[1])))"
    )
    port = free_port()
    context = {
        "rendezvous": f"127.0.0.1:{port}",
        "replicas": 2,
        "index": 0,
        "processes": 1,
        "notice_seconds": 600,
        "outcome_file": str(tmp_path / "outcome.json"),
    }
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, json.dumps(context)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as gang:
        try:
            wait_for_a_listener(port, gang)
            gang.send_signal(signal.SIGTERM)
            assert gang.wait(timeout=600) == 143
        finally:
            gang.kill()
    assert Outcome.model_validate_json((tmp_path / "outcome.json").read_text()).result == "interrupted"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for_a_listener(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until the process's store listens, which is when it begins to wait."""
    while process.poll() is None:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    assert process.stderr is not None
    raise AssertionError(process.stderr.read().decode())


def test_sigterm_is_a_flag_and_ends_a_sleep() -> None:
    stop = Interruption()
    before = signal.getsignal(signal.SIGTERM)
    with stop.on_signals():
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        stop.sleep(60)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("limit", "cores"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)])
def test_a_containers_cpu_limit_bounds_the_threads(tmp_path: Path, limit: str, cores: int | None) -> None:
    (tmp_path / "cpu.max").write_text(limit + "\n")
    affinity = len(os.sched_getaffinity(0))
    assert available_cores(tmp_path) == min(affinity, cores or affinity)


def test_a_limit_of_cgroup_v1_counts_too(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == 1
