"""`alignctl run`, with the real planner and the real trainer on a tiny model."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.graphs import EXECUTES, Graphs, watching
from tests.tiny import write_model, write_pairs

from alignment_operator.local.process import started_at

ROOT = Path(__file__).parents[3]
STEPS = 300  # a tiny step takes some 20 ms: long enough to be interrupted half-way
MANIFEST = f"""\
apiVersion: alignment.run/v1alpha1
kind: AlignmentJob
metadata: {{name: tiny}}
spec:
  model: {{source: file://./model}}
  data: {{source: file://./pairs.jsonl, evaluation: {{fraction: 0.2}}}}
  algorithm: {{dpo: {{beta: 0.1}}}}
  training: {{batchSize: 8, learningRate: 1e-4, maxLength: 256, precision: fp32, maxSteps: {STEPS}, epochs: 99}}
  checkpoint: {{everySteps: 100}}
"""


Alignctl = subprocess.Popen[str]
STARTED: list[Alignctl] = []


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    for process in STARTED:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    write_model(home / "model")
    write_pairs(home / "pairs.jsonl", 120)
    (home / "job.yaml").write_text(MANIFEST)
    return home


def alignctl(*arguments: str, cwd: Path, program: tuple[str, ...] = ("-m", "alignment_cli.main")) -> Alignctl:
    paths = [str(ROOT / "operator"), str(ROOT / "trainer"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": ":".join(filter(None, paths)), "COLUMNS": "200"}
    command = [sys.executable, *program, *arguments]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    STARTED.append(subprocess.Popen(command, cwd=cwd, env=environment, text=True, **streams))
    return STARTED[-1]


def finish(process: Alignctl) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=1100)
    return process.returncode, out, err


def steps_done(folder: Path) -> int:
    status = folder / "status.json"
    read = json.loads(status.read_text()) if status.exists() else {}
    return read.get("progress", {}).get("step", 0) if read.get("stage") == "train" else 0


def wait_until(holds: Callable[[], bool], process: Alignctl) -> None:
    while not holds():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def watched(home: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Graphs]:
    with watching("dpo", tmp_path_factory.mktemp("prometheus")) as graphs:
        code, out, err = finish(alignctl("run", "job.yaml", cwd=home, program=("-c", EXECUTES)))
        assert code == 0, out + err
    return home / "runs" / "tiny", out, graphs


@pytest.fixture(scope="module")
def uninterrupted(watched: tuple[Path, str, Graphs]) -> tuple[Path, str]:
    return watched[:2]


def test_a_run_leaves_the_model_its_report_and_every_log(uninterrupted: tuple[Path, str]) -> None:
    folder, _ = uninterrupted
    report = json.loads((folder / "evaluation.json").read_text())
    assert report["before"]["accuracy"]["value"] == 0.5, "ties are a half"
    assert report["after"]["accuracy"]["value"] > 0.75, "these pairs are easy"
    assert (folder / "model" / "model.safetensors").exists()
    assert (folder / "job.yaml").exists()
    roles = {re.sub(r"tiny-(\w+)-.*", r"\1", log.name) for log in (folder / "logs").iterdir()}
    assert roles == {"prepare", "reference", "policy", "evaluator"}
    assert not (folder / ".run" / "token").exists()


def test_the_output_tells_stages_figures_and_the_models_place(uninterrupted: tuple[Path, str]) -> None:
    folder, out = uninterrupted
    for stage in ("prepare", "train", "evaluate"):
        assert f"stage {stage}" in out
    assert re.search(rf"train  step \d+/{STEPS}  loss 0\.\d+  margin .* tokens/s", out)
    assert re.search(r"accuracy +0\.500 \[", out)
    assert re.search(r"accuracy by length alone +0\.\d\d\d", out)
    assert f"model   {folder / 'model'}" in out


def test_every_query_of_its_dashboard_returns_data(watched: tuple[Path, str, Graphs]) -> None:
    graphs = watched[2]
    if graphs.unavailable:
        pytest.skip(graphs.unavailable)
    assert graphs.empty == []
    assert {"prepare", "policy", "evaluator"} <= graphs.roles


def test_a_second_run_of_a_finished_job_says_so(uninterrupted: tuple[Path, str], home: Path) -> None:
    code, out, _ = finish(alignctl("run", "job.yaml", cwd=home))
    assert code == 0
    assert "nothing is left to do; `--fresh` runs it again in a new folder" in out


def test_a_changed_manifest_does_not_go_on_with_the_run_of_another(uninterrupted: tuple[Path, str], home: Path) -> None:
    (home / "changed.yaml").write_text(MANIFEST.replace("beta: 0.1", "beta: 0.2"))
    code, _, err = finish(alignctl("run", "changed.yaml", cwd=home))
    assert code == 1
    assert "spec.algorithm.dpo.beta: was 0.1, is 0.2 now" in err
    assert "--fresh" in err


def test_an_interrupted_run_goes_on_to_the_same_model(uninterrupted: tuple[Path, str], home: Path) -> None:
    folder = home / "interrupted"
    first = alignctl("run", "job.yaml", "--folder", str(folder), cwd=home)
    wait_until((folder / "status.json").exists, first)
    blocked, _, err = finish(alignctl("run", "job.yaml", "--folder", str(folder), cwd=home))
    assert blocked == 1
    assert "in use by another run" in err
    wait_until(lambda: steps_done(folder) >= 3, first)
    first.send_signal(signal.SIGINT)
    code, out, err = finish(first)
    assert code == 130, out + err
    assert "the same command goes on from there" in out
    saved = json.loads((folder / "status.json").read_text())
    assert saved["phase"] == "Suspended"
    assert 3 <= saved["checkpoint"]["step"] < STEPS

    code, out, err = finish(alignctl("run", "job.yaml", "--folder", str(folder), cwd=home))
    assert code == 0, out + err
    assert "stage prepare" not in out, "what is prepared stays so"
    whole, _ = uninterrupted
    name = Path("model") / "model.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert (folder / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()


def test_a_killed_alignctl_leaves_no_process_and_its_run_can_go_on(home: Path) -> None:
    folder = home / "killed"
    first = alignctl("run", "job.yaml", "--folder", str(folder), cwd=home)
    status_file, processes = folder / "status.json", folder / ".run" / "processes.json"
    wait_until(lambda: processes.exists() and status_file.exists() and "uid" in status_file.read_text(), first)
    pids = json.loads(processes.read_text()).keys()  # of prepare, and of the reference if it was quick
    first.kill()
    finish(first)
    second = alignctl("run", "job.yaml", "--folder", str(folder), cwd=home)
    wait_until(lambda: bool(json.loads(processes.read_text()).keys() - pids), second)
    assert all(started_at(int(pid)) is None for pid in pids)
    second.send_signal(signal.SIGINT)
    code, out, err = finish(second)
    assert code == 130, out + err
    status = json.loads(status_file.read_text())
    (prepare,) = [line for line in status["instances"] if line["role"] == "prepare"]
    assert prepare["life"] == 2, "the killed one was counted as lost"


def test_prepare_refuses_a_prompt_that_is_too_long_and_no_trainer_starts(home: Path) -> None:
    corpus = ROOT / "tests" / "bad_manifests"
    (home / "data").mkdir()
    for name in ("data/long_prompt.jsonl", "prompt_longer_than_max_length.yaml"):
        (home / name).write_text((corpus / name).read_text())
    folder = home / "too-long"
    code, out, _ = finish(alignctl("run", "prompt_longer_than_max_length.yaml", "--folder", str(folder), cwd=home))
    assert code == 1
    assert re.search(
        r"InvalidData.*\n?.*long_prompt\.jsonl:2: .* tokens, more than 64 \(spec\.training\.maxLength\)", out
    ), out
    assert "Traceback" not in out
    assert not list((folder / "logs").glob("*policy*"))
