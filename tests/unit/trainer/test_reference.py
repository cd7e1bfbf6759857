"""Reference servers come and go; every row is computed once, to the same numbers as by the model itself."""

import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from http_servers import hanging_after
from roles import TinyJob, wait_until
from safetensors.numpy import load_file

from alignment_api.contract.spec import AlignmentJobSpec, Training
from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.algorithms.dpo import dpo_loss
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.packing import pack
from alignment_trainer.data.prepared import open_prepared
from alignment_trainer.data.reference import needed_rows, reference_cache
from alignment_trainer.data.storage import Folder
from alignment_trainer.experience.frozen_client import FrozenClient
from alignment_trainer.model.frozen_model import LocalScorer, sum_completions
from alignment_trainer.model.inspect import model_fingerprint
from alignment_trainer.model.load import load_model
from alignment_trainer.model.precision import autocast
from alignment_trainer.model.tasks import LANGUAGE
from alignment_trainer.process.errors import WireError
from alignment_trainer.serving.peers import resolved
from alignment_trainer.serving.pool import PoolOptions, ServerGroup
from alignment_trainer.serving.server import RequestRefused
from alignment_trainer.serving.wire import (
    LOGPROBS,
    GroupsRequest,
    decode_logprobs,
    decode_request,
    encode_logprobs,
    encode_request,
)

FIRST_LOSS = {"fp32": 1e-5, "bf16": 2e-3}
"""How far the first loss of DPO (beta 0.1) may be from ln 2 by the rounding of other micro-batches."""
GROUPS = (PromptGroup((1, 2, 3), ((4, 5), (6,))), PromptGroup((7,), ((8, 9, 10), (11, 12))))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """400 rows; 320 are trained on and 80 held out."""
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
    answer = _post(server, encode_request(GroupsRequest(fingerprint, GROUPS)))
    assert answer.status_code == 200
    assert decode_logprobs(answer.content, GROUPS) == pytest.approx(_direct(job.folder / "model", GROUPS), abs=1e-4)


def test_the_server_refuses_with_reasons(job: TinyJob, server: str) -> None:
    fingerprint = model_fingerprint(job.folder / "model")
    good = encode_request(GroupsRequest(fingerprint, GROUPS))
    long = encode_request(GroupsRequest(fingerprint, (PromptGroup((1,) * 128, ((1,),)),)))
    cases = [
        (401, _post(server, good, token="wrong"), "Authorization: Bearer"),
        (409, _post(server, encode_request(GroupsRequest("other", GROUPS))), f"has model {fingerprint}"),
        (400, _post(server, b"nonsense"), "not safetensors"),
        (400, _post(server, long), "row 1 has 129 tokens, more than 128 (training.maxLength)"),
        (413, _post(server, bytes(257 * 2**20)), "send fewer rows"),
    ]
    for code, answer, reason in cases:
        assert answer.status_code == code
        assert reason in answer.json()["error"]


def test_a_request_survives_the_wire() -> None:
    request = GroupsRequest("f", GROUPS)
    assert decode_request(encode_request(request), vocabulary=13) == request
    with pytest.raises(WireError, match=r"ids outside 0\.\.11"):
        decode_request(encode_request(request), vocabulary=12)
    with pytest.raises(WireError, match="without 3 float32 `logprobs`"):
        decode_logprobs(encode_logprobs("f", np.zeros(2, np.float32)), GROUPS[:1])


def spec_with(training: Training) -> AlignmentJobSpec:
    spec = {"model": {"source": "file:///m"}, "data": {"source": "file:///d.jsonl"}, "algorithm": {"dpo": {}}}
    return AlignmentJobSpec.model_validate(spec | {"training": training})


def _shards(job: TinyJob) -> list[Path]:
    return sorted((job.folder / "run" / "prepared" / "reference").glob("*/*.safetensors"))


def _rows_done(job: TinyJob) -> int:
    progress = httpx.get(f"{job.url('prepare')}/status", timeout=5).json().get("progress")
    return int(progress["step"]) if progress else 0


def test_servers_are_killed_and_added_and_every_row_is_computed_once(job: TinyJob) -> None:
    """The first server answers three requests, then it hangs and is gone."""
    first = job.fork("reference", name="reference-a")
    wait_until(lambda: _is_ready(job.url("reference-a")))
    with hanging_after(3, job.url("reference-a"), "/v1/logprobs", "secret") as lost:
        prepare = job.fork("prepare", peers=(lost, job.url("reference-b")))
        wait_until(lambda: _is_ready(job.url("prepare")) and _rows_done(job) > 0)
        first.kill()
        first.join(900)
    second = job.fork("reference", name="reference-b")
    prepare.join(900)
    second.terminate()
    second.join(900)
    assert (prepare.exitcode, second.exitcode) == (0, 143)
    assert job.outcome("prepare").result == "succeeded"
    assert job.outcome("reference-b").result == "interrupted"

    spec = read_manifest((job.folder / "job.yaml").read_text()).spec
    prepared = open_prepared(Folder(job.folder / "run"))
    rows, cache = needed_rows(prepared, spec.training), reference_cache(prepared)
    assert len(rows) == 400
    assert len(cache.missing(rows)) == 0
    kept = [tuple(key) for path in _shards(job) for key in load_file(path)["keys"].tolist()]
    assert len(kept) == len(set(kept)) == len(set(rows.keys.tolist()))
    scorer = LocalScorer(LANGUAGE, job.folder / "model", spec)
    groups = [rows.group(index) for index in range(len(rows))]
    direct = [sum_completions(*pair) for pair in zip(groups, scorer.score(groups), strict=True)]
    scorer.close()
    assert cache.read(rows.keys, 2) == pytest.approx(np.stack(direct), abs=1e-4)


@pytest.mark.parametrize(("precision", "nats"), [("fp32", 1e-4), ("bf16", 0.1)])
def test_a_rows_sums_hardly_depend_on_the_rows_beside_it(job: TinyJob, precision: str, nats: float) -> None:
    """A server computes rows in other micro-batches than a training step does. Here the step has all rows at once."""
    rows = needed_rows(open_prepared(Folder(job.folder / "run")), Training())
    groups = [rows.group(index) for index in range(24)]
    model = load_model(job.folder / "model")
    spec = spec_with(Training(precision=precision, micro_batch_tokens=64))
    scorer = LocalScorer(LANGUAGE, job.folder / "model", spec)
    with torch.no_grad(), autocast(torch.device("cpu"), precision):
        packed = pack(groups)
        training = packed.sum_per_sequence(model.scorer(packed)).view(24, 2).numpy()
    served = np.stack([sum_completions(g, v) for g, v in zip(groups, scorer.score(groups), strict=True)])
    scorer.close()
    assert served == pytest.approx(training, abs=nats)
    chosen, rejected = torch.from_numpy(training - served).T
    first = dpo_loss(chosen - rejected, beta=0.1).mean()
    assert first.item() == pytest.approx(math.log(2), abs=FIRST_LOSS[precision])


def test_a_complete_cache_needs_no_server(job: TinyJob) -> None:
    again = job.fork("prepare", life=2)
    again.join(900)
    assert again.exitcode == 0
    assert job.outcome("prepare").data == open_prepared(Folder(job.folder / "run")).manifest.data


def test_other_batches_epochs_seed_and_precision_need_no_server(job: TinyJob) -> None:
    """Another seed holds out other rows: they are prepared anew, and their log-probs are there."""
    before, shards = open_prepared(Folder(job.folder / "run")).manifest.data.fingerprint, _shards(job)
    training = {"batchSize": 4, "epochs": 3, "seed": 7, "microBatchTokens": 256, "learningRate": 1e-5}
    job.spec = {"training": training | {"precision": "bf16"}}
    job.write_spec()
    again = job.fork("prepare", life=3)
    again.join(900)
    job.spec = {}
    job.write_spec()
    assert again.exitcode == 0
    assert open_prepared(Folder(job.folder / "run")).manifest.data.fingerprint != before
    assert _shards(job) == shards


def test_the_rows_of_a_damaged_shard_are_computed_again(job: TinyJob) -> None:
    damaged = _shards(job)[0]
    damaged.write_bytes(damaged.read_bytes()[:-8])
    prepare, server = job.fork("prepare", life=4, peers=(job.url("reference"),)), job.fork("reference")
    prepare.join(900)
    server.terminate()
    server.join(900)
    assert prepare.exitcode == 0
    prepared = open_prepared(Folder(job.folder / "run"))
    spec = read_manifest((job.folder / "job.yaml").read_text()).spec
    assert len(reference_cache(prepared).missing(needed_rows(prepared, spec.training))) == 0


def test_what_was_computed_before_it_was_asked_to_go_is_kept(tmp_path: Path, server: str) -> None:
    job = TinyJob(tmp_path, rows=400)
    with hanging_after(3, server, "/v1/logprobs", "secret") as url:
        prepare = job.fork("prepare", peers=(url,), notice_seconds=6)
        wait_until(lambda: _is_ready(job.url("prepare")) and _rows_done(job) > 0)
        prepare.terminate()
        prepare.join(900)
    assert prepare.exitcode == 143
    assert job.outcome("prepare").result == "interrupted"
    assert 0 < sum(len(load_file(path)["keys"]) for path in _shards(job)) < 400


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


def _client(url: str, fingerprint: str = "") -> FrozenClient:
    servers = ServerGroup("reference", resolved([url]), "secret")
    return FrozenClient(servers, LOGPROBS, fingerprint, 4, PoolOptions(leave_within=1))


def test_a_server_that_says_the_request_is_wrong_ends_the_work(server: str) -> None:
    too_long = PromptGroup((1,) * 128, ((1,), (2,)))
    with pytest.raises(RequestRefused, match=r"refused .* of prompt 2 to prompt 2 \(400\).*more than 128"):
        _client(server).ask([GROUPS[0], too_long], stop=lambda: False)


def test_a_server_of_another_model_is_passed_over(server: str, caplog: pytest.LogCaptureFixture) -> None:
    assert _client(server, "another-model").ask(GROUPS, stop=lambda: "409" in caplog.text) is None
    assert "ask another" in caplog.text


def test_a_client_asks_in_pieces_and_puts_the_answers_in_order(job: TinyJob, server: str) -> None:
    groups = (*GROUPS, *GROUPS[::-1], PromptGroup((1, 2, 3, 4), ((5, 6, 7), (8,), (9, 10))))
    found = _client(server).ask(groups, stop=lambda: False)
    assert found is not None
    assert found.tolist() == pytest.approx(_direct(job.folder / "model", groups), abs=1e-4)
