"""Roles forked from one process that has imported what they need."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_operator.local import process
from alignment_operator.local.forking import ForkServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ROLE = """
import os, pathlib, signal, sys, time
def main():
    def save(*_):
        print("saved", flush=True)
        os._exit(143)
    signal.signal(signal.SIGTERM, save)
    print(os.environ["WORD"], os.environ.get("HOME"), os.getsid(0) == os.getpid(), flush=True)
    print("read", repr(sys.stdin.read()), flush=True)
    if os.environ["WORD"] == "fails":
        raise SystemExit(3)
    time.sleep(60)
"""
RUNS = """
import os, sys, time
from pathlib import Path
from alignment_operator.local.forking import ForkServer
if __name__ == "__main__":
    server = ForkServer("forked_role", preload="forked_role")
    child = server.start({"WORD": "waits"}, Path(sys.argv[1]))
    print(child.pid, flush=True)
    time.sleep(60)
"""


def eventually(holds: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ForkServer:
    (tmp_path / "forked_role.py").write_text(ROLE)
    monkeypatch.syspath_prepend(tmp_path)
    return ForkServer("forked_role", preload="forked_role")


def test_a_forked_role_has_its_own_environment_session_and_log(server: ForkServer, tmp_path: Path) -> None:
    log = tmp_path / "role.log"
    child = server.start({"WORD": "fails"}, log)
    child.wait()
    assert child.poll() == child.returncode == 3
    told = log.read_text().splitlines()
    assert told[0].split()[:2] == ["fails", "None"]
    assert told[0].endswith("True")
    assert told[1] == "read ''"


def test_a_forked_role_saves_when_it_is_asked_and_dies_when_it_is_killed(server: ForkServer, tmp_path: Path) -> None:
    logs = [tmp_path / "polite.log", tmp_path / "killed.log"]
    polite, killed = (server.start({"WORD": "waits"}, log) for log in logs)
    assert eventually(lambda: all(log.exists() and "read" in log.read_text() for log in logs))
    assert polite.poll() is None
    process.send(polite.pid, signal.SIGTERM)
    process.kill(killed.pid)
    for child in (polite, killed):
        child.wait()
    assert (polite.returncode, killed.returncode) == (143, -signal.SIGKILL)
    assert logs[0].read_text().splitlines()[-1] == "saved"
    assert process.started_at(killed.pid) is None


def test_forked_roles_save_when_the_command_that_runs_them_is_killed(tmp_path: Path) -> None:
    """Their parent is the process that they were forked from, which goes with the command."""
    (tmp_path / "forked_role.py").write_text(ROLE)
    (tmp_path / "command.py").write_text(RUNS)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    log = tmp_path / "role.log"
    command = process.start(
        [sys.executable, str(tmp_path / "command.py"), str(log)], os.environ | {"PYTHONPATH": paths}, tmp_path / "pid"
    )
    try:
        assert eventually(lambda: log.exists() and "read" in log.read_text())
        assert eventually(lambda: bool((tmp_path / "pid").read_text().strip()))
        role = int((tmp_path / "pid").read_text())
    finally:
        command.kill()
        command.wait()
    assert eventually(lambda: process.started_at(role) is None)
    assert log.read_text().splitlines()[-1] == "saved"
