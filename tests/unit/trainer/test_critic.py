"""The role `critic` behind HTTP says and does what a critic in the actor's process does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from roles import TinyJob, wait_until
from tests.tiny import SHAPE, tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.checkpoint.attempt import Start
from alignment_trainer.checkpoint.checkpoint import verify, write_checkpoint
from alignment_trainer.checkpoint.claims import checkpoints_of
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.storage import Folder
from alignment_trainer.experience.critic_client import CriticAddress, LocalCritic, RemoteCritic
from alignment_trainer.experience.critic_start import CriticStart
from alignment_trainer.experience.critic_wire import (
    ATTEMPT_HEADER,
    BEGIN_PATH,
    UPDATE_PATH,
    VALUES_PATH,
    WRITE_PATH,
    encode_groups,
)
from alignment_trainer.experience.minibatches import UpdateKey
from alignment_trainer.experience.value_trainer import ValueBatch
from alignment_trainer.roles.critic import make_value_trainer

PPO = {"ppo": {"maxNewTokens": 32, "rewards": [{"function": {"regex": {"pattern": "kind"}}}]}}
GROUPS = (PromptGroup((5, 6, 7), ((8, 9), (10,))), PromptGroup((11, 12), ((13, 14, 15),)))
RATE = 1e-2


def batch(values: torch.Tensor) -> ValueBatch:
    return ValueBatch(GROUPS, values, torch.linspace(-1, 1, 6), torch.full((6,), 1 / 6), scale=0.4)


def key(step: int) -> UpdateKey:
    return UpdateKey(attempt=1, step=step, epoch=0, minibatch=0)


@pytest.fixture
def job(tmp_path: Path, request: pytest.FixtureRequest) -> TinyJob:
    return TinyJob(tmp_path, rows=8, spec={"algorithm": PPO}, processes=getattr(request, "param", 1))


@pytest.fixture
def remote(job: TinyJob) -> Iterator[RemoteCritic]:
    process, critic = serving(job), actor_side(job)
    yield critic
    process.terminate()
    critic.close()
    process.join(900)
    assert process.exitcode == 143


def serving(job: TinyJob, **of_context: Any) -> Any:
    """The critic's process, once it is ready."""
    process = job.fork("critic", **of_context)
    wait_until(lambda: is_ready(job))
    return process


def actor_side(job: TinyJob) -> RemoteCritic:
    return RemoteCritic(CriticAddress(job.url("critic"), "secret", attempt=1))


def is_ready(job: TinyJob) -> bool:
    try:
        return httpx.get(f"{job.url('critic')}/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def local(job: TinyJob) -> LocalCritic:
    spec = read_manifest((job.folder / "job.yaml").read_text()).spec
    return LocalCritic(
        lambda start: make_value_trainer(spec, CriticStart(job.folder / "model"), start, torch.device("cpu"))
    )


@pytest.mark.parametrize("job", [1, 2], ids=["one rank", "two ranks"], indirect=True)
def test_it_values_updates_and_checkpoints_as_one_in_this_process(job: TinyJob, remote: RemoteCritic) -> None:
    here = local(job)
    assert remote.begin(None) == here.begin(None) == 0
    assert remote.values(GROUPS).tolist() == [0.0] * 6
    for step in range(2):
        told = []
        for critic in (remote, here):
            critic.start_update(key(step), RATE, batch(critic.values(GROUPS)))
            told.append(critic.finish_update())
        assert told[0] == pytest.approx(told[1], rel=1e-4)
    assert torch.allclose(remote.values(GROUPS), here.values(GROUPS), atol=1e-5)
    assert not torch.allclose(remote.values(GROUPS), torch.zeros(6))

    place = checkpoints_of(Folder(job.folder / "run")).within("0001/00000002")
    write_checkpoint(place, 1, 2, remote.snapshot("0001/00000002")(place))
    written = verify(place)
    assert {part.name.partition("-")[0] for part in written.parts} == {"critic"}
    resumed = local(job)
    assert resumed.begin(Start.of(written)) == 2
    assert torch.allclose(resumed.values(GROUPS), remote.values(GROUPS), atol=1e-5)


def test_a_repeated_update_changes_nothing(job: TinyJob, remote: RemoteCritic) -> None:
    remote.begin(None)
    zeros = torch.zeros(6)
    remote.start_update(key(0), RATE, batch(zeros))
    first = remote.finish_update()
    after = remote.values(GROUPS)
    remote.start_update(key(0), RATE, batch(zeros))
    assert remote.finish_update() == first
    assert torch.equal(remote.values(GROUPS), after)


def test_it_answers_its_own_attempt_alone(job: TinyJob, remote: RemoteCritic) -> None:
    def ask(attempt: str, token: str = "secret", body: bytes = b"", path: str = VALUES_PATH) -> httpx.Response:
        headers = {"Authorization": f"Bearer {token}", ATTEMPT_HEADER: attempt}
        return httpx.post(f"{job.url('critic')}{path}", content=body or encode_groups(GROUPS), headers=headers)

    assert ask("1", token="wrong").status_code == 401
    assert ask("2").status_code == 409
    assert "of attempt 1, not 2" in ask("2").json()["error"]
    assert "not begun" in ask("1").json()["error"]
    remote.begin(None)
    for path in (BEGIN_PATH, VALUES_PATH, UPDATE_PATH, WRITE_PATH):
        for body in (
            b"nonsense",
            b"{}",
            b'{"checkpoint": "../../other-job"}',
            b'{"start": "../other-job", "resumes": true}',
        ):
            assert ask("1", body=body, path=path).status_code == 400, (path, body)
    assert ask("1").status_code == 200, "it has outlived them all"


def test_asked_to_go_it_stays_while_its_actor_lives(job: TinyJob) -> None:
    """The actor, asked as well, may be in the middle of a long step before it saves."""
    process, critic = serving(job, notice_seconds=8), actor_side(job)
    critic.begin(None)
    process.terminate()
    process.join(6)
    assert process.exitcode is None, "two seconds of silence would have sent it away"
    assert critic.values(GROUPS).tolist() == [0.0] * 6
    critic.close()
    process.join(200)
    assert process.exitcode == 143


def test_asked_to_go_it_leaves_an_actor_that_is_gone(job: TinyJob) -> None:
    process = serving(job, notice_seconds=8)
    process.terminate()
    process.join(200)
    assert process.exitcode == 143


def with_reward_model(folder: Path, critic: dict[str, Any], **shape: Any) -> TinyJob:
    """A PPO job whose one reward is a reward model of its policy's shape, but for `shape`, of weight 1/2."""
    tokenizer = tiny_tokenizer()
    torch.manual_seed(7)
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=None, **(SHAPE | shape))
    LlamaForSequenceClassification(config).save_pretrained(folder / "judge")
    tokenizer.save_pretrained(folder / "judge")
    rewards = [{"model": {"source": f"file://{folder}/judge"}, "weight": 0.5}]
    job = TinyJob(
        folder, rows=40, spec={"algorithm": {"ppo": {"rewards": rewards, "critic": critic, "maxNewTokens": 16}}}
    )
    prepare = job.fork("prepare")
    prepare.join(120)
    return job


def test_it_starts_from_the_reward_model_head_included(tmp_path: Path) -> None:
    """What the reward model says of the text so far, at its weight: the score that the actor will be given."""
    job = with_reward_model(tmp_path, {})
    assert job.outcome("prepare").failure is None
    judge = LlamaForSequenceClassification.from_pretrained(tmp_path / "judge", dtype=torch.float32)
    texts = [
        group.prompt + completion[:place]
        for group in GROUPS
        for completion in group.completions
        for place in range(len(completion))
    ]
    with torch.no_grad():
        expected = [judge(torch.tensor([text])).logits[0, 0].item() / 2 for text in texts]
    process, critic = serving(job), actor_side(job)
    assert critic.begin(None) == 0
    assert critic.values(GROUPS).tolist() == pytest.approx(expected, abs=1e-4)
    critic.close()
    process.terminate()
    process.join(30)


def test_a_reward_model_of_another_shape_is_no_start_and_refused_where_it_is_asked_for(tmp_path: Path) -> None:
    asked = with_reward_model(tmp_path / "asked", {"from": "rewardModel"}, num_hidden_layers=1)
    failure = asked.outcome("prepare").failure
    assert failure is not None
    assert not failure.retryable
    assert "spec.algorithm.ppo.critic.from: found rewardModel, but reward `model` has num_hidden_layers 1" in (
        failure.message
    )
    left_open = with_reward_model(tmp_path / "open", {}, num_hidden_layers=1)
    assert left_open.outcome("prepare").failure is None
