"""A job whose model, data and result lie in a bucket, role by role as a runtime starts them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from roles import TinyJob
from safetensors.torch import load_file
from tests.s3 import S3Server

from alignment_trainer.checkpoint.output import output_at
from alignment_trainer.object_store.store import ObjectStore


def upload(folder: Path, source: str) -> None:
    store = ObjectStore.of(source, "field")
    for path in [folder] if folder.is_file() else folder.iterdir():
        store.put(path.name, [path.read_bytes()])


def run_role(job: TinyJob, role: str) -> int:
    process = job.fork(role, sources={}, output=job.spec["output"]["destination"])
    process.join(900)
    return int(process.exitcode)


def test_a_job_reads_its_model_and_rows_from_a_bucket_and_leaves_its_result_in_one(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    spec = {
        "model": {"source": f"s3://{bucket}/models/tiny"},
        "data": {"source": f"s3://{bucket}/data/pairs.jsonl", "evaluation": {"fraction": 0.2}},
        "output": {"destination": f"s3://{bucket}/results/tiny"},
        "roles": {"reference": {"placement": "withPolicy"}},
        "training": {"maxSteps": 2},
    }
    environment = s3_server.variables | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    job = TinyJob(tmp_path, spec=spec, environment=environment)
    upload(tmp_path / "model", spec["model"]["source"])
    upload(tmp_path / "pairs.jsonl", f"s3://{bucket}/data")
    for role in ("prepare", "policy", "evaluator"):
        assert run_role(job, role) == 0, job.outcome(role)
    prepared = job.outcome("prepare")
    assert prepared.model is not None
    assert prepared.data is not None
    assert prepared.model.revision is not None
    assert prepared.data.revision is not None
    base = load_file(tmp_path / "model" / "model.safetensors")["model.embed_tokens.weight"]
    with output_at(spec["output"]["destination"]).model() as exported:
        assert not torch.equal(load_file(exported / "model.safetensors")["model.embed_tokens.weight"], base)
    report = ObjectStore.of(spec["output"]["destination"], "field").get("evaluation.json")
    assert json.loads(report) == json.loads(job.outcome("evaluator").evaluation.model_dump_json())
    assert not (tmp_path / "run" / "model").exists()
