"""Jobs whose model, data, storage and result lie in a bucket, role by role as a runtime starts them.

Every life of a role has a disk of its own, as a pod has: what a killed one left there is nobody's.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from roles import TinyJob, wait_until
from safetensors.torch import load_file
from tests.relay import Dam
from tests.s3 import S3Server

from alignment_trainer.checkpoint.claims import checkpoints_of, read_claims
from alignment_trainer.checkpoint.output import output_at
from alignment_trainer.data.storage import storage_at
from alignment_trainer.object_store.store import ObjectStore

pytestmark = pytest.mark.timeout(1800)


class BucketJob(TinyJob):
    """Its files are in the bucket alone; its folder has the job, logs and outcomes."""

    def __init__(self, folder: Path, bucket: str, server: S3Server, processes: int = 1, **spec: Any) -> None:
        self.bucket, self.lives, self.url_of_store = bucket, 0, server.url
        self.storage, self.output = (f"s3://{bucket}/{name}/tiny" for name in ("runs", "results"))
        places = {
            "model": {"source": f"s3://{bucket}/models/tiny"},
            "data": {"source": f"s3://{bucket}/data/pairs.jsonl", "evaluation": {"fraction": 0.2}},
            "storage": {"source": self.storage},
            "output": {"destination": self.output},
        }
        super().__init__(folder, spec=spec | places, processes=processes, environment=dict(server.variables))
        upload(folder / "model", places["model"]["source"])
        upload(folder / "pairs.jsonl", f"s3://{bucket}/data")

    def begin(self, role: str, url: str | None = None, **of_context: Any) -> Any:
        """A life of a role, on an empty disk. url: of the store, in place of the server's own."""
        self.lives += 1
        self.environment["XDG_CACHE_HOME"] = str(self.disk)
        self.environment["AWS_ENDPOINT_URL"] = url or self.url_of_store
        places = {"sources": {}, "storage": self.storage, "output": self.output}
        return self.fork(role, **(places | of_context))

    def run(self, role: str, **of_context: Any) -> None:
        process = self.begin(role, **of_context)
        process.join(900)
        assert process.exitcode == 0, self.outcome(role)

    @property
    def disk(self) -> Path:
        """Of the newest life."""
        return self.folder / f"disk-{self.lives}"

    def copies(self) -> list[str]:
        """Names of the files that the newest life has left on its disk."""
        return sorted(path.name for path in self.disk.rglob("*") if path.is_file() and path.suffix != ".lock")

    @contextmanager
    def reference(self) -> Iterator[str]:
        """Its URL, while a server of the reference runs, which is told of no storage."""
        server = self.begin("reference", storage=None, peers={"prepare": (self.url("prepare"),)})
        yield self.url("reference")
        server.terminate()
        server.join(900)
        assert server.exitcode == 143


def upload(folder: Path, source: str) -> None:
    store = ObjectStore.of(source, "field")
    for path in [folder] if folder.is_file() else folder.iterdir():
        store.put(path.name, [path.read_bytes()])


def losses(log: Path) -> dict[int, float]:
    whole = log.read_text().splitlines(keepends=True) if log.exists() else []
    parsed = (json.loads(line) for line in whole if line.startswith("{") and line.endswith("}\n"))
    return {line["step"]: line["loss"] for line in parsed if "loss" in line}


def trained_at_once(folder: Path, processes: int = 1, **spec: Any) -> dict[int, float]:
    """The losses of the same job in folders, which nobody disturbs."""
    job = TinyJob(folder, spec=spec, processes=processes)
    prepare = job.fork("prepare")
    prepare.join(900)
    assert prepare.exitcode == 0, job.outcome("prepare")
    for rank in job.fork_ranks("policy") if processes > 1 else [job.fork("policy")]:
        rank.join(900)
        assert rank.exitcode == 0, (job.folder / "policy.log").read_text()
    return losses(job.folder / "policy.log")


def test_a_job_in_a_bucket_that_is_killed_in_the_middle_of_an_upload_goes_on_from_the_checkpoint_before(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Prepared with a server of the reference, killed while it saves step 4, gone on with on an empty disk."""
    job = BucketJob(tmp_path / "bucket", bucket, s3_server)
    storage = storage_at(job.storage, "field")
    with job.reference() as url:
        job.run("prepare", peers=(url,))
    with Dam(s3_server.url, "checkpoints/0001/00000004/state", after=500_000).running() as dam:
        killed = job.begin("policy", url=dam.url)
        assert dam.reached.wait(900)
        killed.kill()
        killed.join()
    first = losses(job.folder / "policy.log")
    job.run("policy", life=2)
    start = read_claims(storage)[1].start
    assert start is not None
    assert (start.term, start.step) == (1, 2)
    whole = trained_at_once(tmp_path / "folder", roles={"reference": {"placement": "withPolicy"}})
    assert losses(job.folder / "policy.log") == whole
    assert set(first) >= {1, 2, 3}
    assert first.items() <= whole.items()
    assert not any(name.startswith("state") for name in job.copies()), "a checkpoint's copy goes once it is loaded"
    kept = {name.rpartition("/")[0] for name in checkpoints_of(storage).begun()}
    assert kept == {f"0002/{step:08d}" for step in (4, 6, 8)}
    job.run("evaluator")
    base = load_file(job.folder / "model" / "model.safetensors")["model.embed_tokens.weight"]
    with output_at(job.output).model() as exported:
        assert not torch.equal(load_file(exported / "model.safetensors")["model.embed_tokens.weight"], base)
    report = ObjectStore.of(job.output, "field").get("evaluation.json")
    assert json.loads(report) == json.loads(job.outcome("evaluator").evaluation.model_dump_json())
    assert not (job.folder / "run").exists()


@pytest.mark.parametrize("algorithm", ["ipo", "orpo", "simpo"])
def test_the_other_losses_of_pairs_train_and_are_evaluated_from_a_bucket(
    s3_server: S3Server, bucket: str, tmp_path: Path, algorithm: str
) -> None:
    """With a reference that the policy computes, and without any."""
    roles = {"roles": {"reference": {"placement": "withPolicy"}}} if algorithm == "ipo" else {}
    job = BucketJob(tmp_path, bucket, s3_server, algorithm={algorithm: {}}, training={"maxSteps": 2}, **roles)
    for role in ("prepare", "policy", "evaluator"):
        job.run(role)
    assert set(losses(job.folder / "policy.log")) == {1, 2}
    assert checkpoints_of(storage_at(job.storage, "field")).list("0001/00000002/")
    assert job.outcome("evaluator").evaluation is not None


def test_two_ranks_of_a_reward_model_save_to_a_bucket_and_go_on_from_there(
    s3_server: S3Server, bucket: str, tmp_path: Path
) -> None:
    """Asked to go in the middle; its figures of before lie in the bucket, too."""
    spec = {"algorithm": {"reward": {}}, "training": {"learningRate": 1e-2}}
    job = BucketJob(tmp_path / "bucket", bucket, s3_server, processes=2, **spec)
    job.run("prepare")
    attempt = job.begin("policy")
    wait_until(lambda: 1 in losses(job.folder / "policy.log"))
    attempt.terminate()
    attempt.join(900)
    assert attempt.exitcode in (0, 128 + signal.SIGTERM)
    saved = job.outcome("policy").step
    job.run("policy", life=2)
    start = read_claims(storage_at(job.storage, "field"))[1].start
    assert start is not None
    assert start.step == saved
    assert losses(job.folder / "policy.log") == trained_at_once(tmp_path / "folder", 2, **spec)
    job.run("evaluator")
