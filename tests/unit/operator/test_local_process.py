"""Processes of the local runtime: nothing outlives its parent, and everything gets a chance to save."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_operator.local import process

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
SAVES = """
import pathlib, signal, sys, time
def save(*_):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
)
STARTS_ONE = """
import os, sys, time
from pathlib import Path
from alignment_operator.local import process
child = process.start([sys.executable, "-c", sys.argv[1], sys.argv[2]], os.environ, Path(sys.argv[3]))
print(child.pid, flush=True)
time.sleep(60)
"""


def eventually(holds: Callable[[], bool], seconds: float = 180) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.02)
    return holds()


def start(tmp_path: Path, code: str, *arguments: str) -> "subprocess.Popen[bytes]":
    log = tmp_path / "log"
    child = process.start([sys.executable, "-c", code, *arguments], os.environ, log)
    assert eventually(lambda: b"ready" in log.read_bytes())
    return child


def test_a_role_saves_when_its_parent_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTS_ONE, SAVES, str(tmp_path / "state"), str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert eventually(lambda: "ready" in (tmp_path / "log").read_text())
        parent.kill()
    assert eventually(lambda: process.started_at(child) is None)
    assert (tmp_path / "state").read_text() == "saved"


def test_ctrl_c_in_the_terminal_reaches_no_role(tmp_path: Path) -> None:
    child = process.start(SLEEP, os.environ, tmp_path / "log")
    try:
        assert os.getsid(child.pid) != os.getsid(0)
        assert os.getpgid(child.pid) == child.pid
    finally:
        process.kill(child.pid)
        child.wait()


def test_killing_takes_what_has_left_for_a_session_of_its_own(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({SLEEP!r}, start_new_session=True)\n"
        "print('ready', child.pid, flush=True)\ntime.sleep(60)"
    )
    child = start(tmp_path, code)
    grandchild = int((tmp_path / "log").read_text().split()[1])
    assert process.descendants(child.pid) == [grandchild]
    process.kill(child.pid)
    child.wait()
    assert eventually(lambda: process.started_at(grandchild) is None)


def test_what_a_killed_run_left_is_asked_before_it_is_killed(tmp_path: Path) -> None:
    polite = start(tmp_path, SAVES, str(tmp_path / "state"))
    process.end_all([polite.pid], notice_seconds=120)
    assert polite.wait() == 143
    assert (tmp_path / "state").read_text() == "saved"


def test_what_does_not_go_in_its_notice_is_killed(tmp_path: Path) -> None:
    stubborn = start(tmp_path, STUBBORN)
    process.end_all([stubborn.pid], notice_seconds=0.2)
    assert stubborn.wait() == -signal.SIGKILL


def test_a_signal_to_a_process_that_has_ended_is_fine(tmp_path: Path) -> None:
    child = process.start([sys.executable, "-c", ""], os.environ, tmp_path / "log")
    child.wait()
    process.send(child.pid, signal.SIGTERM)
    assert process.started_at(child.pid) is None
