"""checkpoint.resumeFrom another job gives its weights; what a job saved itself is taken up whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from roles import TinyJob
from tests.tiny import write_model, write_pairs
from tiny_runs import Setting, tiny_run

from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.checkpoint.attempt import Start
from alignment_trainer.checkpoint.checkpoint import Checkpoint, checkpoint_name, write_checkpoint, write_parts
from alignment_trainer.checkpoint.claims import checkpoints_of
from alignment_trainer.checkpoint.inheritance import check_inheritance
from alignment_trainer.checkpoint.run_state import Position, draft_trainee, random_state
from alignment_trainer.data.storage import Folder
from alignment_trainer.engines.base import Engine
from alignment_trainer.experience.critic_start import CriticStart
from alignment_trainer.experience.critic_wire import decode_begin, encode_begin
from alignment_trainer.experience.value_trainer import PREFIX
from alignment_trainer.loop.build import Origin, load_trainee
from alignment_trainer.loop.train import train
from alignment_trainer.model.tasks import CRITIC
from alignment_trainer.process.errors import UserError
from alignment_trainer.roles.critic import make_value_trainer

pytestmark = pytest.mark.timeout(600)
CPU = torch.device("cpu")
REWARD = {"algorithm": {"reward": {}}, "data": {"evaluation": {"fraction": 0.25}}}
PPO = {"ppo": {"maxNewTokens": 32, "rewards": [{"function": {"regex": {"pattern": "x"}}}]}}


def run_role(job: TinyJob, role: str) -> int:
    process = job.fork(role)
    process.join(240)
    return int(process.exitcode)


def lines(job: TinyJob) -> list[dict[str, Any]]:
    whole = [line for line in (job.folder / "policy.log").read_text().splitlines() if line.startswith("{")]
    found = [json.loads(line) for line in whole]
    return [line for line in found if "loss" in line]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    """A reward model after four steps on 40 rows."""
    job = TinyJob(tmp_path_factory.mktemp("first"), spec=REWARD | {"training": {"maxSteps": 4, "learningRate": 1e-2}})
    assert [run_role(job, role) for role in ("prepare", "policy")] == [0, 0]
    return job


def second(first: TinyJob, folder: Path, model: Path | None = None, **training: Any) -> TinyJob:
    """A job on other rows that starts from the first one's checkpoint, or from `model` as it came."""
    inherits = {} if model else {"checkpoint": {"everySteps": 1, "resumeFrom": f"file://{folder}/other"}}
    job = TinyJob(folder, spec=REWARD | {"training": {"batchSize": 4} | training} | inherits)
    write_pairs(folder / "pairs.jsonl", 40, seed=5)
    shutil.copytree(first.folder / "run", folder / "other")
    if model is not None:
        shutil.rmtree(folder / "model")
        shutil.copytree(model, folder / "model")
    return job


def test_another_jobs_checkpoint_is_as_good_as_a_model_of_its_weights(first: TinyJob, tmp_path: Path) -> None:
    """Two steps of a job that has two, although the checkpoint holds four; every loss is that of a fresh start."""
    heir = second(first, tmp_path / "heir", maxSteps=2)
    oracle = second(first, tmp_path / "oracle", model=first.folder / "run" / "model", maxSteps=2)
    for job in (heir, oracle):
        assert [run_role(job, role) for role in ("prepare", "policy")] == [0, 0]
    told = ("step", "loss", "gradient_norm", "learning_rate")
    ours, theirs = ([[line[name] for name in told] for line in lines(job)] for job in (heir, oracle))
    assert [step for step, *_ in ours] == [1, 2]
    assert ours == theirs
    claim = json.loads((heir.folder / "run" / "claims" / "0001.json").read_text())
    assert claim["start"] is None


def test_its_own_checkpoint_goes_before_another_jobs(first: TinyJob, tmp_path: Path) -> None:
    """A second attempt goes on where the first one stopped; it does not start from the other job again."""
    job = second(first, tmp_path, maxSteps=2)
    assert [run_role(job, role) for role in ("prepare", "policy")] == [0, 0]
    shutil.rmtree(job.folder / "other")  # nobody looks there any more
    (job.folder / "other").mkdir()
    assert [run_role(job, role) for role in ("prepare", "policy")] == [0, 0]
    assert [line["step"] for line in lines(job)] == [1, 2]


def test_the_checkpoint_of_another_model_is_refused_by_prepare(first: TinyJob, tmp_path: Path) -> None:
    job = second(first, tmp_path)
    job.spec = job.spec | {"algorithm": {"dpo": {}}, "roles": {"reference": {"placement": "withPolicy"}}}
    job.write_spec()
    assert run_role(job, "prepare") == 1
    failure = job.outcome("prepare").failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("OtherArchitecture", False)
    assert f"spec.checkpoint.resumeFrom: `file://{tmp_path}/other`" in failure.message
    assert "`score.weight`" in failure.message


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Of a tiny DPO run, after two of its steps, in a storage with a claim."""
    run, recorder = tiny_run(tmp_path / "other" / "checkpoints", Setting(steps=2))
    train(run)
    claim = {"term": 1, "uid": "other", "attempt": 1, "start": None, "claimedAt": "2026-01-01T00:00:00Z"}
    (tmp_path / "other" / "claims").mkdir()
    (tmp_path / "other" / "claims" / "0001.json").write_text(json.dumps(claim))
    return recorder.checkpoints[-1]


SHAPES = {"model.norm.weight": (64,), "model.embed_tokens.weight": (97, 64)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.layers.7.mlp.weight": (3,)}, "lacks 1 tensors of this model, such as `model.layers.7.mlp.weight`"),
        ({"model.norm.weight": (65,)}, "`model.norm.weight` is 64 there, 65 here"),
        ({"model.embed_tokens.weight": (97, 32)}, "`model.embed_tokens.weight` is 97x64 there, 97x32 here"),
        ({}, "has 18 that this model does not have, such as `model.layers.0"),
    ],
)
def test_the_difference_is_told_by_name_and_shape(checkpoint, tmp_path, changes, message):
    with pytest.raises(UserError) as error:
        check_inheritance(Folder(tmp_path / "run"), Folder(tmp_path / "other"), "pvc://runs/first", SHAPES | changes)
    assert message in str(error.value)


def test_a_storage_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"`pvc://runs/first` .* holds no checkpoint"):
        check_inheritance(Folder(tmp_path / "run"), Folder(tmp_path / "other"), "pvc://runs/first", SHAPES)


def test_its_own_storage_is_nothing_to_start_from(tmp_path):
    with pytest.raises(UserError, match="this job's own storage, from which it goes on by itself"):
        check_inheritance(Folder(tmp_path), Folder(tmp_path), "pvc://runs/first", SHAPES)


@pytest.fixture(scope="module")
def ppo(tmp_path_factory: pytest.TempPathFactory) -> TinyJob:
    job = TinyJob(tmp_path_factory.mktemp("ppo"), spec={"algorithm": PPO})
    write_model(job.folder / "model")
    return job


def state(engine: Engine) -> dict[str, torch.Tensor]:
    return {name: torch.cat([s.exp_avg.flatten(), s.exp_avg_sq.flatten()]) for name, s in engine.full_state() if s}


def test_actor_and_critic_alike_take_weights_alone(ppo: TinyJob, tmp_path: Path) -> None:
    """And are seeded alike: as at any job's beginning, not as the other one's checkpoint has it."""
    spec = read_manifest((ppo.folder / "job.yaml").read_text()).spec
    origins = {"": Origin(ppo.folder / "model"), PREFIX: Origin(ppo.folder / "model", CRITIC, PREFIX)}
    for prefix, origin in origins.items():
        trained = load_trainee(spec, origin, None, CPU)
        seeded = random_state()
        saved = save_moved(trained.engine, Folder(tmp_path / f"of{prefix}"), prefix)
        torch.manual_seed(99)
        heir = load_trainee(spec, origin, Start.of(saved, resumes=False), CPU)
        assert torch.equal(random_state()["cpu"], seeded["cpu"])
        assert (heir.position, heir.engine.steps) == (Position(), 0)
        assert not any(moments.any() for moments in state(heir.engine).values())
        for (name, ours), (_, theirs) in zip(heir.engine.full_weights(), trained.engine.full_weights(), strict=True):
            assert torch.equal(ours, theirs), name


def save_moved(engine: Engine, place: Folder, prefix: str) -> Checkpoint:
    """A checkpoint after a step, with weights that are not those of the model."""
    for _, parameter in engine._scorer.named_parameters():
        parameter.grad = torch.ones_like(parameter)
    engine.step(1e-3)
    torch.manual_seed(5)
    return write_checkpoint(place, 1, 1, write_parts(place, draft_trainee(engine, prefix)))


def test_a_critic_begins_afresh_where_the_other_job_had_none(ppo: TinyJob, checkpoint: Checkpoint) -> None:
    spec = read_manifest((ppo.folder / "job.yaml").read_text()).spec
    start = Start.of(checkpoint, resumes=False)
    assert make_value_trainer(spec, CriticStart(ppo.folder / "model"), start, CPU).steps == 0


def test_a_remote_critic_is_told_whose_checkpoint_it_is(tmp_path: Path) -> None:
    storage, other, moved = (Folder(tmp_path / name) for name in ("run", "other", "as the critic sees it"))
    own = Start.of(written(storage, 2, 4, updates=1))
    anothers, seen = (Start.of(written(place, 1, 9), resumes=False) for place in (other, moved))
    assert decode_begin(encode_begin(own), storage, other) == own
    assert decode_begin(encode_begin(anothers), storage, other) == anothers
    assert decode_begin(encode_begin(None), storage, other) is None
    assert decode_begin(encode_begin(anothers), storage, moved) == seen


def written(storage: Folder, term: int, step: int, updates: int = 0) -> Checkpoint:
    """One without parts."""
    place = checkpoints_of(storage).within(checkpoint_name(term, step, updates))
    return write_checkpoint(place, term, step, (), updates)
