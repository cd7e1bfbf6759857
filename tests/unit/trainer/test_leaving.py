"""Who is asked to go goes soon: an evaluation is left in its middle, a server gives its work back."""

from __future__ import annotations

import dataclasses
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
from roles import TinyJob, wait_until
from test_reward_stage import judge
from tiny_runs import Setting, pairs, tiny_run

from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.packing import pack
from alignment_trainer.engines.scoring import score_sequences
from alignment_trainer.loop.offline import Interrupted, leave_if_asked
from alignment_trainer.loop.train import train
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard
from alignment_trainer.roles import policy
from alignment_trainer.roles.critic import CriticInbox
from alignment_trainer.serving.frozen_server import LEAVING
from alignment_trainer.serving.wire import LOGPROBS_PATH, GroupsRequest, encode_request

pytestmark = pytest.mark.timeout(300)


def test_asked_to_go_in_an_evaluation_a_run_saves_what_it_has_done(tmp_path):
    """Held-out rows after every step, checkpoints after every sixth: three steps were done, and three are saved."""
    run, recorder = tiny_run(tmp_path, Setting(steps=6, checkpoint_every=6))
    groups, computed = [pair.group for pair in pairs(10)], []

    def forward(batch):
        computed.append(batch)
        return run.engine.forward(batch)

    def evaluate(step: int) -> None:
        score_sequences(forward, pack, groups, 1, lambda: leave_if_asked(lambda: step == 3 and len(computed) >= 44))

    run.options = dataclasses.replace(run.options, evaluate_every=1)
    run.hooks = dataclasses.replace(run.hooks, evaluate=evaluate)
    with pytest.raises(Interrupted):
        train(run)
    assert len(computed) == 44  # twenty completions after steps 1 and 2, four of the third time
    assert [checkpoint.step for checkpoint in recorder.checkpoints] == [3]


def test_asked_to_go_before_its_first_step_a_policy_leaves_the_figures_of_the_untouched_model(tmp_path: Path) -> None:
    model = {"source": f"file://{tmp_path}/judge"}  # its head is trained; of a new one nothing is to be said
    job = TinyJob(tmp_path, spec={"algorithm": {"reward": {}}, "model": model})
    judge(job)
    prepare = job.fork("prepare")
    prepare.join(240)
    assert prepare.exitcode == 0
    stop = Interruption()
    stop.request()
    manifest = read_manifest((tmp_path / "job.yaml").read_text())
    board = StatusBoard()
    outcome = policy.run(Instance(job.context("policy"), manifest, board, Metrics("tiny", "policy"), stop))
    assert outcome.result == "interrupted"
    assert board.read().state == "evaluating the untouched model"
    assert not (tmp_path / "run" / "before.json").exists()
    assert not list((tmp_path / "run").glob("checkpoints/*/*"))


def test_a_server_that_is_asked_to_go_gives_its_work_back(tmp_path: Path) -> None:
    """A request of 3,000 micro-batches is answered with 503 when it goes, and asked of another server."""
    job = TinyJob(tmp_path, rows=8, spec={"training": {"microBatchTokens": 128}})
    server = job.fork("reference")
    body = encode_request(GroupsRequest("", (PromptGroup((1,) * 100, ((4, 5, 6),)),) * 3000))
    headers = {"Authorization": "Bearer secret"}
    with ThreadPoolExecutor(1) as asking, httpx.Client(base_url=job.url("reference"), headers=headers) as http:
        wait_until(lambda: _status(job) == 200 or not server.is_alive())
        asked = asking.submit(http.post, LOGPROBS_PATH, content=body, timeout=200)
        wait_until(lambda: "alignment_idle_seconds{" in _metrics(job))
        time.sleep(0.2)
        server.terminate()
        answer = asked.result()
    assert (answer.status_code, answer.json()) == (503, {"error": LEAVING})
    server.join(60)
    assert server.exitcode == 143


def _status(job: TinyJob) -> int:
    try:
        return httpx.get(f"{job.url('reference')}/healthz").status_code
    except httpx.TransportError:
        return 0


def _metrics(job: TinyJob) -> str:
    return httpx.get(f"{job.url('reference')}/metrics").text


def test_a_critic_that_nobody_has_asked_goes_at_once():
    inbox = CriticInbox(attempt=1, patience=math.inf)
    assert inbox.may_go(lambda: True) is False  # inf is never exceeded
    inbox = CriticInbox(attempt=1, patience=1e6)
    assert inbox.may_go(lambda: False) is False
    assert inbox.may_go(lambda: True) is True
    inbox.last_sign = time.monotonic()
    assert inbox.may_go(lambda: True) is False
    inbox.released = True
    assert inbox.may_go(lambda: True) is True


def test_scoring_asks_before_each_micro_batch(tmp_path):
    run, _ = tiny_run(tmp_path, Setting(steps=1))
    asked: list[int] = []
    groups = [pair.group for pair in (*pairs(4), *pairs(2, seed=1))]
    found = score_sequences(run.engine.forward, pack, groups, 1, lambda: asked.append(1))
    assert len(asked) == 12
    assert torch.equal(found, score_sequences(run.engine.forward, pack, groups, 1))
