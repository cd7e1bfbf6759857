"""The folder of a run on a laptop."""

import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.sources import parse_source
from alignment_api.contract.status import AlignmentJobStatus
from alignment_api.yaml.manifest import read_manifest
from alignment_operator.local.context import Places, build_context
from alignment_operator.local.folder import FolderDamaged, FolderInUse, RunFolder
from alignment_operator.local.machine import local_platform, parse_gpus
from alignment_operator.local.sources import local_job, missing_volumes
from alignment_operator.local.world import end_stale_processes
from alignment_operator.plan.types import Instance

TEXT = """\
apiVersion: alignment.run/v1alpha1
kind: AlignmentJob
metadata: {name: tiny, uid: 0b9e, labels: {team: "yes"}}
spec:
  model: {source: file://./model}
  data: {source: pvc://data/pairs.jsonl, columns: {prompt: "017"}}
  algorithm: {dpo: {}}
  roles: {reference: {replicas: 2}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    folder = RunFolder(tmp_path / "runs" / "tiny")
    folder.lock()
    yield folder
    folder.unlock()


@pytest.fixture
def job(tmp_path: Path) -> AlignmentJob:
    return local_job(read_manifest(TEXT), tmp_path / "here", {"data": tmp_path / "volume"})


def instance(role: str, index: int = 0, peers: tuple[str, ...] = ()) -> Instance:
    return Instance(
        name=f"tiny-{role}-{index}-1-abcde",
        role=role,
        index=index,
        life=1,
        stage="prepare",
        attempt=0,
        pool="spot",
        replicas=2,
        processes=1,
        gpus=0,
        cpu="1",
        memory="1Gi",
        ephemeral_storage="1Gi",
        ephemeral_storage_limit=None,
        peers=peers,
    )


def test_two_runs_cannot_share_a_folder(folder: RunFolder) -> None:
    with pytest.raises(FolderInUse, match="in use by another run; wait for it, stop it with Ctrl-C, or choose another"):
        RunFolder(folder.path).lock()
    folder.unlock()
    next_run = RunFolder(folder.path)
    next_run.lock()
    next_run.unlock()


def test_the_lock_goes_with_its_process(folder: RunFolder) -> None:
    folder.unlock()
    code = "import sys; from alignment_operator.local.folder import *; RunFolder(Path(sys.argv[1])).lock()"
    subprocess.run([sys.executable, "-c", code, str(folder.path)], check=True)
    folder.lock()
    with pytest.raises(FolderInUse):
        RunFolder(folder.path).lock()  # it is held again, by this process


def test_a_job_comes_back_as_it_was_with_its_uid(folder: RunFolder, job: AlignmentJob) -> None:
    assert folder.read_job() is None
    folder.write_job(job)
    assert folder.read_job() == job
    assert "batchSize: 64" in folder.job_file.read_text(), "defaults are written out"


def test_a_status_comes_back_as_it_was(folder: RunFolder) -> None:
    assert folder.read_status() == AlignmentJobStatus()
    status = AlignmentJobStatus(phase="Running", started_at=datetime(2026, 1, 2, tzinfo=UTC), metrics={"loss": 0.5})
    folder.write_status(status)
    assert folder.read_status() == status


def test_a_damaged_status_is_named_and_not_taken_for_a_new_job(folder: RunFolder) -> None:
    folder.status_file.write_text('{"phase": "Runn')
    with pytest.raises(FolderDamaged, match=r"status.json: not a status .*; remove it to go through the stages again"):
        folder.read_status()


def test_only_the_owner_reads_the_token(folder: RunFolder) -> None:
    folder.make_token()
    first = folder.token_file.read_text()
    assert stat.S_IMODE(folder.token_file.stat().st_mode) == 0o600
    assert len(first) >= 32
    folder.make_token()
    assert folder.token_file.read_text() != first


def test_sources_are_paths_here(job: AlignmentJob, tmp_path: Path) -> None:
    assert job.spec.model.source == f"file://{tmp_path}/here/model"
    assert job.spec.data.source == f"file://{tmp_path}/volume/pairs.jsonl"


def test_a_claim_without_a_folder_is_named_with_its_field() -> None:
    ((path, message),) = missing_volumes(read_manifest(TEXT), {})
    assert path == ("spec", "data", "source")
    assert message.endswith("say which folder stands for it here: --volume data=FOLDER")


def test_a_role_finds_its_peers_where_they_listen(folder: RunFolder, job: AlignmentJob, tmp_path: Path) -> None:
    places = Places(folder, local_platform())
    prepare = build_context(job, instance("prepare", peers=("reference",)), places)
    servers = [build_context(job, instance("reference", index), places) for index in (0, 1)]
    assert prepare.peers == {"reference": tuple(f"http://{s.host}:{s.port}" for s in servers)}
    assert len({prepare.port, *(server.port for server in servers)}) == 3
    assert prepare.sources == {
        source: parse_source(source).path for source in (job.spec.model.source, job.spec.data.source)
    }


def test_a_next_life_listens_where_the_last_one_did(folder: RunFolder, job: AlignmentJob) -> None:
    places = Places(folder, local_platform())
    ports = {build_context(job, instance("reference"), places).port for _ in range(2)}
    assert len(ports) == 1


def test_the_run_folder_is_storage_and_output_unless_the_spec_names_them(
    folder: RunFolder, job: AlignmentJob, tmp_path: Path
) -> None:
    places = Places(folder, local_platform())
    context = build_context(job, instance("policy"), places)
    assert context.storage == context.output == str(folder.path)
    assert context.job_file == str(folder.spec_file(0))
    named = read_manifest(
        TEXT + f"  storage: {{source: file://{tmp_path}/s}}\n  output: {{destination: file://{tmp_path}/o}}\n"
    )
    context = build_context(named, instance("policy"), places)
    assert (context.storage, context.output) == (f"{tmp_path}/s", f"{tmp_path}/o")
    stored = read_manifest(TEXT + "  storage: {source: s3://runs/tiny}\n")
    assert build_context(stored, instance("policy"), places).storage == "s3://runs/tiny"
    assert build_context(stored, instance("reference"), places).storage is None


def test_a_process_that_took_over_a_dead_ones_id_is_left_alone(folder: RunFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        folder.write_processes({stranger.pid: 1.0})
        assert end_stale_processes(Places(folder, local_platform())) == []
        assert stranger.poll() is None
        stranger.kill()
    assert folder.read_processes() == {}


def test_gpus_are_read_off_the_drivers_table() -> None:
    table = "NVIDIA H100 80GB HBM3, 81559, 9.0\nNVIDIA A100, 40960, 8.0\nTesla T4, 15360, 7.5\n"
    first, *others = parse_gpus(table)
    assert (first.product, round(first.memory_gib, 1), first.bf16) == ("NVIDIA H100 80GB HBM3", 79.6, True)
    assert [(gpu.product, gpu.memory_gib, gpu.bf16) for gpu in others] == [
        ("NVIDIA A100", 40.0, True),
        ("Tesla T4", 15.0, False),
    ]
