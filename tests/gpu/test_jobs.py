"""Whole jobs on one GPU by `alignctl run`, from prepare to the evaluation, with random weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny import write_model, write_pairs

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
MANIFEST = """\
apiVersion: alignment.run/v1alpha1
kind: AlignmentJob
metadata: {name: tiny}
spec:
  model: {source: file://./model}
  data: {source: file://./pairs.jsonl, evaluation: {fraction: 0.2}}
  algorithm: {dpo: {beta: 0.1}}
  training: {batchSize: 8, learningRate: 1e-3, maxLength: 256, maxSteps: 30, epochs: 99, recomputeLayers: 0}
"""


def test_a_dpo_job_goes_from_prepare_to_its_evaluation(tmp_path, cuda):
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs.jsonl", 120)
    (tmp_path / "job.yaml").write_text(MANIFEST)
    paths = [str(ROOT / "operator"), str(ROOT / "trainer"), os.environ.get("PYTHONPATH", "")]
    ended = subprocess.run(
        [sys.executable, "-m", "alignment_cli.main", "run", "job.yaml"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ":".join(filter(None, paths)), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(tmp_path.glob("runs/**/*.log")))
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:] + logs
    (written,) = tmp_path.glob("**/evaluation.json")
    report = json.loads(written.read_text())
    assert report["before"]["accuracy"]["value"] == 0.5
    assert report["after"]["accuracy"]["value"] > 0.8
    assert "computes in bf16" in ended.stdout + ended.stderr


@pytest.mark.skip(reason="NOT COVERED: no GRPO or PPO job, and no vLLM server, has a test on a GPU yet")
def test_a_grpo_job_goes_from_prepare_to_its_evaluation() -> None:
    """Its servers are the other half of the path on GPUs."""
