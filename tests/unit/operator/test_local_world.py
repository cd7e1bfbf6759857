"""Processes of a laptop run: what one leaves behind when it is killed goes with it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.unit.operator.small_cluster import make_job, ppo_spec

from alignment_api.contract.status import AlignmentJobStatus
from alignment_operator.local import process
from alignment_operator.local.context import Places
from alignment_operator.local.folder import RunFolder
from alignment_operator.local.machine import local_platform
from alignment_operator.local.world import LocalWorld, end_stale_processes, execute
from alignment_operator.plan.types import Instance, JobKey, Plan, Removal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

KEY = JobKey("", "helpful")
ENGINE = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
ENGINE += "start_new_session=True, stdout=subprocess.DEVNULL).pid, flush=True)"
ROLE = f"""
import json, os, pathlib, subprocess, sys, time
scratch = pathlib.Path(json.loads(os.environ["ALIGNMENT_CONTEXT"])["scratch"])
(scratch / "weights").write_bytes(b"w")
subprocess.run([sys.executable, "-c", {ENGINE!r}], check=True)
time.sleep(60)
"""
"""A role whose engine is nobody's child by the time it runs, in a session of its own."""


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    yield Places(folder, local_platform())
    folder.remove_scratch()
    folder.unlock()


def instance(index: int = 0) -> Instance:
    return Instance(
        name=f"helpful-rollout-{index}-1-abcde",
        role="rollout",
        index=index,
        life=1,
        stage="train",
        attempt=1,
        pool="spot",
        replicas=2,
        processes=1,
        gpus=0,
        cpu="1",
        memory="1Gi",
        ephemeral_storage="1Gi",
        ephemeral_storage_limit=None,
        peers=("actor",),
    )


def eventually(holds: Callable[[], object], seconds: float = 180) -> bool:
    deadline = time.monotonic() + seconds
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(holds())


def start(places: Places, *instances: Instance) -> LocalWorld:
    job = make_job(ppo_spec())
    world = LocalWorld(job, places, execute((sys.executable, "-c", ROLE)))
    asyncio.run(world.apply(job, Plan(AlignmentJobStatus(), create=instances)))
    return world


def engine_of(places: Places, name: str) -> int:
    log = places.folder.log_file(name)
    assert eventually(lambda: log.exists() and log.read_text().strip()), "the engine's id"
    return int(log.read_text())


def test_a_killed_role_leaves_neither_engine_nor_weights(places: Places) -> None:
    killed, lives = instance(0), instance(1)
    world = start(places, killed, lives)
    engines = {name: engine_of(places, name) for name in (killed.name, lives.name)}
    (pid,) = [pid for pid in places.folder.read_processes() if _is(pid, killed.name)]
    os.kill(pid, signal.SIGKILL)
    assert eventually(lambda: process.started_at(pid) is None)
    assert process.started_at(engines[killed.name]) is not None
    observed = asyncio.run(world.observe(KEY))
    assert {pod.name: pod.phase for pod in observed.pods} == {killed.name: "Failed", lives.name: "Running"}
    assert eventually(lambda: process.started_at(engines[killed.name]) is None)
    assert not places.folder.scratch(killed.name).exists()
    assert process.started_at(engines[lives.name]) is not None
    assert (places.folder.scratch(lives.name) / "weights").read_bytes() == b"w"
    world.close()
    assert eventually(lambda: process.started_at(engines[lives.name]) is None)
    assert not places.folder.scratch(lives.name).parent.exists()


def test_what_a_killed_run_left_is_gone_before_the_next_begins(places: Places) -> None:
    name = instance().name
    places.folder.make_scratch(name)
    environment = {**os.environ, process.LIFE_VARIABLE: places.folder.mark(name)}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment) as engine:
        end_stale_processes(places)
        assert engine.wait(180) == -signal.SIGKILL
    assert not places.folder.scratch(name).exists()


def test_scratch_is_in_memory_and_its_owners_alone(places: Places) -> None:
    name = instance().name
    places.folder.make_scratch(name)
    (places.folder.scratch(name) / "weights").touch()
    places.folder.make_scratch(name)  # a life starts with an empty one
    assert list(places.folder.scratch(name).iterdir()) == []
    assert places.folder.scratch(name).stat().st_mode & 0o077 == 0
    assert places.folder.scratch(name).is_relative_to("/dev/shm") == os.access("/dev/shm", os.W_OK)


def test_every_server_of_a_run_has_a_port_that_nobody_is_given_by_chance(places: Places) -> None:
    ports = {places.ports.of(role, index) for role in ("actor", "critic", "reward", "rollout") for index in range(8)}
    assert len(ports) == 32
    assert max(ports) < 32_768  # where Linux begins to hand them out


def _is(pid: int, name: str) -> bool:
    return f"//{name}".encode() in Path(f"/proc/{pid}/environ").read_bytes()


def test_a_servers_successor_starts_when_its_port_is_free(places: Places) -> None:
    """The next life of a place is known by the same port, so it waits for the former one to be gone."""
    former = instance(0)
    successor = replace(former, name="helpful-rollout-0-2-abcde", life=2, stage="evaluate")
    world = start(places, former)
    job = make_job(ppo_spec())
    (view,) = asyncio.run(world.observe(KEY)).pods
    gone = Removal(view.name, view.uid, timedelta(seconds=60))

    asyncio.run(world.apply(job, Plan(AlignmentJobStatus(), create=(successor,), delete=(gone,))))
    phases = {pod.name: pod.phase for pod in asyncio.run(world.observe(KEY)).pods}
    assert phases[successor.name] == "Pending"

    def next_pass() -> bool:
        seen = {pod.name: pod.phase for pod in asyncio.run(world.observe(KEY)).pods}
        asyncio.run(world.apply(job, Plan(AlignmentJobStatus())))
        return seen.get(successor.name) == "Running" and former.name not in seen

    assert eventually(next_pass)
    world.close()
