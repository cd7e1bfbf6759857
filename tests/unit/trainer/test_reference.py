"""Reference servers come and go; every row is computed once, to the same numbers as by the model itself."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from roles import TinyJob, wait_until

from alignment_api.manifest import read_manifest
from alignment_api.spec import AlignmentJobSpec, Training
from alignment_trainer.data.group_arrays import WireError
from alignment_trainer.data.packing import PromptGroup, pack, pair_group
from alignment_trainer.data.prepared import Examples, open_prepared
from alignment_trainer.data.reference import Float32, Shard, plan_shards, reference_cache
from alignment_trainer.experience.reference_client import shard_task
from alignment_trainer.model.frozen_model import LocalScorer, sum_completions
from alignment_trainer.model.inspect import model_fingerprint
from alignment_trainer.model.load import load_model
from alignment_trainer.model.precision import autocast
from alignment_trainer.model.tasks import LANGUAGE
from alignment_trainer.serving.peers import resolved
from alignment_trainer.serving.pool import PoolOptions, RequestRefused, ServerPool
from alignment_trainer.serving.wire import LogprobsRequest, decode_answer, decode_request, encode_answer, encode_request

GROUPS = (PromptGroup((1, 2, 3), ((4, 5), (6,))), PromptGroup((7,), ((8, 9, 10), (11, 12))))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """400 rows; 320 are trained on, in 10 shards, and 80 held out, in 3."""
    return TinyJob(tmp_path_factory.mktemp("job"), rows=400)


@pytest.fixture(scope="module")
def server(job: TinyJob) -> Iterator[str]:
    process = job.fork("reference", name="reference-module")
    try:
        wait_until(lambda: _is_ready(job.url("reference-module")))
        yield job.url("reference-module")
    finally:
        process.terminate()
        process.join(900)


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _post(url: str, body: bytes, token: str = "secret") -> httpx.Response:
    return httpx.post(f"{url}/v1/logprobs", content=body, headers={"Authorization": f"Bearer {token}"}, timeout=300)


def _direct(folder: Path, groups: tuple[PromptGroup, ...]) -> list[float]:
    """Log-probs of completion tokens by transformers alone, one sequence at a time."""
    causal = load_model(folder).network.eval()
    found: list[float] = []
    for group in groups:
        for completion in group.completions:
            tokens = torch.tensor([group.prompt + completion])
            with torch.no_grad():
                logprobs = causal(tokens).logits.log_softmax(-1)[0]
            start = len(group.prompt)
            found += [float(logprobs[start + n - 1, token]) for n, token in enumerate(completion)]
    return found


def test_the_server_answers_with_the_models_own_log_probs(job: TinyJob, server: str) -> None:
    fingerprint = model_fingerprint(job.folder / "model")
    answer = _post(server, encode_request(LogprobsRequest(fingerprint, 1, (GROUPS,))))
    assert answer.status_code == 200
    assert decode_answer(answer.content, 8) == pytest.approx(_direct(job.folder / "model", GROUPS), abs=1e-4)


def test_the_server_refuses_with_reasons(job: TinyJob, server: str) -> None:
    fingerprint = model_fingerprint(job.folder / "model")
    good = encode_request(LogprobsRequest(fingerprint, 1, (GROUPS,)))
    long = encode_request(LogprobsRequest(fingerprint, 1, ((PromptGroup((1,) * 128, ((1,),)),),)))
    cases = [
        (401, _post(server, good, token="wrong"), "Authorization: Bearer"),
        (409, _post(server, encode_request(LogprobsRequest("other", 1, (GROUPS,)))), f"has model {fingerprint}"),
        (400, _post(server, b"nonsense"), "not safetensors"),
        (400, _post(server, long), "row 1 has 129 tokens, more than 128 (training.maxLength)"),
        (413, _post(server, bytes(257 * 2**20)), "send fewer rows"),
    ]
    for code, answer, reason in cases:
        assert answer.status_code == code
        assert reason in answer.json()["error"]


def test_a_request_survives_the_wire() -> None:
    request = LogprobsRequest("f", 2, (GROUPS[:1], GROUPS))
    assert decode_request(encode_request(request), vocabulary=13) == request
    with pytest.raises(WireError, match=r"ids outside 0\.\.11"):
        decode_request(encode_request(request), vocabulary=12)
    with pytest.raises(WireError, match="without 3 float32 `logprobs`"):
        decode_answer(encode_answer("f", np.zeros(2, np.float32)), tokens=3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_shards_sums_are_those_of_a_training_step_to_the_bit(job: TinyJob, precision: str) -> None:
    """What prepare sums up and what a step sums up must agree, or the first loss is not ln 2."""
    model = load_model(job.folder / "model")
    scorer = LocalScorer(LANGUAGE, job.folder / "model", spec_with(Training(precision=precision)))
    with torch.no_grad(), autocast(torch.device("cpu"), precision):
        packed = pack(GROUPS)
        training = packed.sum_per_sequence(model.scorer(packed)).view(2, 2)
    served = np.stack([sum_completions(g, v) for g, v in zip(GROUPS, scorer.score(GROUPS), strict=True)])
    scorer.close()
    assert np.array_equal(served, training.numpy())


def spec_with(training: Training) -> AlignmentJobSpec:
    spec = {"model": {"source": "file:///m"}, "data": {"source": "file:///d.jsonl"}, "algorithm": {"dpo": {}}}
    return AlignmentJobSpec.model_validate(spec | {"training": training})


def _logprobs_of(rows: Examples, folder: Path, training: Training, shards: list[Shard]) -> Float32:
    """All rows by the model in this process."""
    scorer = LocalScorer(LANGUAGE, folder, spec_with(training))
    sums = np.full((len(rows), 2), np.nan, np.float32)
    for batch in (batch for shard in shards for batch in shard.batches):
        groups = [pair_group(rows[index]) for index in batch]
        for index, group, values in zip(batch, groups, scorer.score(groups), strict=True):
            first = len(group.completions[0])
            sums[index] = values[:first].sum(), values[first:].sum()
    scorer.close()
    return sums


def test_servers_are_killed_and_added_and_every_row_is_computed_once(job: TinyJob) -> None:
    peers = (job.url("reference-a"), job.url("reference-b"))
    shards = job.folder / "run" / "prepared" / "reference"
    prepare = job.fork("prepare", peers=peers)
    first = job.fork("reference", name="reference-a")
    wait_until(lambda: len(list(shards.glob("*.sha256"))) >= 2)
    first.kill()
    first.join(900)
    done = len(list(shards.glob("*.sha256")))
    assert done < 13, "the work was over before the server was killed"
    assert prepare.is_alive()
    second = job.fork("reference", name="reference-b")
    prepare.join(900)
    second.terminate()
    second.join(900)
    assert (prepare.exitcode, second.exitcode) == (0, 143)
    assert job.outcome("prepare").result == "succeeded"
    assert job.outcome("reference-b").result == "interrupted"

    spec = read_manifest((job.folder / "job.yaml").read_text()).spec
    prepared = open_prepared(job.folder / "run")
    plan = plan_shards(prepared, spec.training)
    assert sorted(path.stem for path in shards.glob("*.sha256")) == sorted(shard.name for shard in plan)
    assert sorted(index for s in plan if s.split == "train" for index in s.indices) == list(range(320))
    cache = reference_cache(prepared, spec.training)
    for split in ("train", "evaluation"):
        rows, mine = prepared.split(split), [shard for shard in plan if shard.split == split]
        direct = _logprobs_of(rows, job.folder / "model", spec.training, mine)
        assert cache.read(split, len(rows)) == pytest.approx(direct, abs=1e-4)


def test_a_complete_cache_needs_no_server(job: TinyJob) -> None:
    again = job.fork("prepare", life=2)
    again.join(900)
    assert again.exitcode == 0
    assert job.outcome("prepare").data == open_prepared(job.folder / "run").manifest.data


def test_a_damaged_shard_alone_is_computed_again(job: TinyJob) -> None:
    folder = job.folder / "run" / "prepared" / "reference"
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("train-*.safetensors")}
    damaged = folder / sorted(before)[3]
    damaged.write_bytes(damaged.read_bytes()[:-8])
    prepare, server = job.fork("prepare", life=3, peers=(job.url("reference"),)), job.fork("reference")
    prepare.join(900)
    server.terminate()
    server.join(900)
    assert prepare.exitcode == 0
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("train-*.safetensors")}
    assert [name for name in before if before[name] != after[name]] == [damaged.name]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["shards"]) == 13


def test_prepare_is_ready_before_there_is_a_server_and_leaves_when_asked(tmp_path: Path) -> None:
    job = TinyJob(tmp_path)
    prepare = job.fork("prepare", peers=("http://reference.invalid:8000", job.url("reference")))
    wait_until(lambda: _is_ready(job.url("prepare")))
    status = httpx.get(f"{job.url('prepare')}/status").json()
    assert status["data"]["rows"] == 64
    assert status["model"]["parameters"] == 99648
    wait_until(lambda: "waiting for reference servers" in httpx.get(f"{job.url('prepare')}/healthz").text)
    prepare.terminate()
    prepare.join(900)
    assert prepare.exitcode == 143
    assert job.outcome("prepare").result == "interrupted"


def test_a_server_that_says_the_request_is_wrong_ends_the_work(job: TinyJob, server: str) -> None:
    fingerprint = model_fingerprint(job.folder / "model")
    too_long = LogprobsRequest(fingerprint, 1, ((PromptGroup((1,) * 128, ((1,), (2,))),),))
    pool = ServerPool(shard_task(lambda _: too_long, lambda *_: None), resolved([server]), "secret")
    with pytest.raises(RequestRefused, match=r"refused train-00000000-00000000 \(400\).*more than 128"):
        pool.run([Shard("train", 0, ((0,),))], stop=lambda: False)


def test_a_server_of_another_model_is_passed_over(job: TinyJob, server: str, caplog: pytest.LogCaptureFixture) -> None:
    request = LogprobsRequest("another-model", 1, (GROUPS,))
    task = shard_task(lambda _: request, lambda *_: None)
    pool = ServerPool(task, resolved([server]), "secret", options=PoolOptions(leave_within=1))
    assert not pool.run([Shard("train", 0, ((0, 1),))], stop=lambda: "409" in caplog.text)
    assert "ask another" in caplog.text
