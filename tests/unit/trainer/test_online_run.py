"""The online loop in one process: what it learns, that it resumes anywhere, that micro-batches change nothing."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from online_runs import END, HereAndNow, OnlineSetting, critic_network, online_run
from ranks import run_ranks
from tiny_runs import newest_saved

from alignment_trainer.checkpoint.checkpoint import write_parts
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.experience import SAMPLES_FILE, Experience, experience_draft, load_experience, subgroups
from alignment_trainer.data.packing import pack_whole
from alignment_trainer.data.storage import Folder
from alignment_trainer.experience.minibatches import minibatches, plan_micros
from alignment_trainer.loop.offline import Interrupted
from alignment_trainer.loop.online import OnlineRun
from alignment_trainer.loop.train import train_online
from alignment_trainer.model.heads import value_scorer

GROUPS = (PromptGroup((1, 2), ((3, 4), (5,))), PromptGroup((6,), ((7, 8, 9), (10,))))


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_before_its_first_update_the_policy_is_its_sampler_and_its_reference(tmp_path: Path, algorithm: str) -> None:
    run, recorder = online_run(tmp_path, OnlineSetting(algorithm, steps=1, epochs=1, batch_size=16))
    train_online(run)
    metrics = recorder.reports[0].metrics
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["update_kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["mismatch"] == pytest.approx(0, abs=1e-5)
    assert metrics["importance_weight"] == pytest.approx(1, abs=1e-5)
    assert metrics["clip_ratio"] == 0
    assert metrics["staleness"] == 0
    assert metrics["prompts_trained"] == 4


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_policy_learns_what_is_rewarded(tmp_path: Path, algorithm: str) -> None:
    """Even tokens are half of a random model's; 25 steps make them most of what it says."""
    run, recorder = online_run(tmp_path, OnlineSetting(algorithm, steps=25, learning_rate=3e-3))
    train_online(run)
    rewards = [report.metrics["reward"] for report in recorder.reports]
    assert np.mean(rewards[:3]) < 0.65
    assert np.mean(rewards[-3:]) > np.mean(rewards[:3]) + 0.15
    assert recorder.reports[-1].metrics["kl"] > 0


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_micro_batches_change_no_update(tmp_path: Path, algorithm: str) -> None:
    """All completions at once against one group at a time: the same norms and losses, to fp32 accuracy."""
    found = []
    for tokens in (10**6, 1):
        run, recorder = online_run(tmp_path / str(tokens), OnlineSetting(algorithm, steps=2, micro_tokens=tokens))
        train_online(run)
        found.append(recorder.reports)
    for whole, single in zip(*found, strict=True):
        assert single.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
        assert single.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_two_ranks_update_as_one_does(tmp_path: Path, algorithm: str) -> None:
    """Actor and critic sharded by ZeRO-2 against plain torch: same samples, same losses, same norms."""
    run, recorder = online_run(tmp_path / "one", OnlineSetting(algorithm, steps=2))
    train_online(run)
    shared = {"algorithm": algorithm, "steps": 2, "sharding": "zero2"}
    found, other = run_ranks(2, "rank_bodies:online", folder=str(tmp_path / "two"), **shared)
    assert other == []
    for one, two in zip(recorder.reports, found, strict=True):
        assert two["reward"] == pytest.approx(one.metrics["reward"], abs=1e-6)
        assert two["norm"] == pytest.approx(one.grad_norm, rel=1e-3)
        for name in {"loss", "value_loss", "kl"} & set(one.metrics):
            assert two[name] == pytest.approx(one.metrics[name], rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("asked_after", [0, 1, 3, 4, 6, 9])
@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_run_that_was_asked_to_go_goes_on_bit_for_bit(tmp_path: Path, algorithm: str, asked_after: int) -> None:
    """Between any two updates: actor and critic from one checkpoint, the experience not sampled again."""
    setting = OnlineSetting(algorithm, steps=3)
    whole, expected = online_run(tmp_path / "whole", setting)
    train_online(whole)

    answers = iter([False] * asked_after)
    first, before = online_run(tmp_path / "cut", setting, stop=lambda: next(answers, True))
    with pytest.raises(Interrupted):
        train_online(first)
    newest = newest_saved(tmp_path / "cut")
    assert (newest.step, newest.updates) == divmod(asked_after, 4)
    second, after = online_run(tmp_path / "cut", setting, start=newest.here())
    train_online(second)

    seen = [(r.step, r.grad_norm, r.metrics["loss"]) for r in before.reports + after.reports]
    wanted = [(r.step, r.grad_norm, r.metrics["loss"]) for r in expected.reports]
    cut = asked_after // 4
    assert seen[:cut] + seen[cut + 1 :] == wanted[:cut] + wanted[cut + 1 :]  # of the cut step a part is reported
    for (name, a), (_, b) in zip(
        second.trainees.engine.full_weights(), whole.trainees.engine.full_weights(), strict=True
    ):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("ends_in", ["sample 0", "sample 2", "rewards", "reference", "first update"])
@pytest.mark.parametrize("saved_before", [True, False], ids=["after a checkpoint", "between checkpoints"])
def test_what_was_sampled_before_a_run_had_to_go_is_not_sampled_again(
    tmp_path: Path, ends_in: str, saved_before: bool
) -> None:
    """In the second step's rollout, scoring, or right after: every prompt is sampled once; the rest is bit for bit."""
    setting = OnlineSetting("ppo", steps=2, checkpoint_every=1 if saved_before else 100)
    whole, expected = online_run(tmp_path / "whole", setting)
    train_online(whole)

    first, before = online_run(
        tmp_path / "cut", setting, stop=lambda: ends_in == "first update" and first.position.step == 1
    )
    first_clients = clients_of(first)
    first_clients.ends_in = lambda call: call == ends_in and first.position.step == 1
    with pytest.raises(Interrupted):
        train_online(first)
    newest = newest_saved(tmp_path / "cut")
    assert (newest.step, newest.updates) == (1, 0)
    second, after = online_run(tmp_path / "cut", setting, start=newest.here())
    train_online(second)

    assert sorted(first_clients.sampled + clients_of(second).sampled) == sorted(clients_of(whole).sampled)
    assert [r.metrics["loss"] for r in before.reports + after.reports] == [r.metrics["loss"] for r in expected.reports]
    for (name, a), (_, b) in zip(
        second.trainees.engine.full_weights(), whole.trainees.engine.full_weights(), strict=True
    ):
        assert torch.equal(a, b), name


def test_a_damaged_file_of_samples_costs_samples_and_nothing_else(tmp_path: Path) -> None:
    setting = OnlineSetting("grpo", steps=1)
    first, _ = online_run(tmp_path, setting)
    clients_of(first).ends_in = lambda call: call == "sample 3"
    with pytest.raises(Interrupted):
        train_online(first)
    newest = newest_saved(tmp_path).here()
    file = newest / SAMPLES_FILE
    file.write_bytes(file.read_bytes()[:-5])
    second, recorder = online_run(tmp_path, setting, start=newest)
    train_online(second)
    assert len(clients_of(second).sampled) == 4
    assert len(recorder.reports) == 1


def clients_of(run: OnlineRun) -> HereAndNow:
    clients = run.services.clients
    assert isinstance(clients, HereAndNow)
    return clients


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_completions_that_were_cut_off_have_no_loss_under_the_mask(tmp_path: Path, algorithm: str) -> None:
    """All eight tokens of a cut completion stay away from both losses: the minibatches hold the others alone."""
    run, _ = online_run(tmp_path, OnlineSetting(algorithm, steps=1, epochs=1, batch_size=4, truncated="mask"))
    experience = experience_of(run)
    finished = [group[-1] == END for prompt in experience.groups for group in prompt.completions]
    assert 0 < sum(finished) < len(finished)
    seen = [place for minibatch in run.minibatches(experience) for place in minibatch.indices]
    assert sorted(seen) == [place for place, ended in enumerate(finished) if ended]


def experience_of(run: OnlineRun) -> Experience:
    """The first step's."""
    return run.learn_from(run.score(run.rollout(next(run.batches()))))


def test_a_step_without_a_finished_completion_changes_nothing_under_the_mask(tmp_path: Path) -> None:
    run, recorder = online_run(tmp_path, OnlineSetting("ppo", steps=1, truncated="mask"))
    clients_of(run).never_ends = True
    before = {name: tensor.clone() for name, tensor in run.trainees.engine.full_weights()}
    train_online(run)
    assert all(torch.equal(before[name], tensor) for name, tensor in run.trainees.engine.full_weights())
    assert recorder.versions == []
    assert all(np.isfinite(value) for value in recorder.reports[0].metrics.values())


def test_the_critics_value_stands_in_for_the_score_of_what_was_cut_off(tmp_path: Path) -> None:
    """With lambda 1 and no KL the return of every token is V of the end, or the score of a completion that ended."""
    run, _ = online_run(tmp_path, OnlineSetting("ppo", steps=1, truncated="bootstrap", value_head=0.3, gae_lambda=1.0))
    rollout = run.rollout(next(run.batches()))
    scored = run.score(rollout)
    experience = run.learn_from(scored)
    whole = value_scorer(critic_network(0.3))
    with torch.no_grad():
        ends = whole(pack_whole(rollout.groups))  # the state of each completion's last token
    expected = torch.where(rollout.finished, scored.scores, ends)
    assert 0 < rollout.finished.sum() < len(rollout.finished)
    assert torch.allclose(experience.returns, expected[:, None] * rollout.mask, atol=1e-5)


def test_what_the_critic_learns_is_divided_by_the_running_deviation_of_the_scores(tmp_path: Path) -> None:
    """A resumed run goes on with the deviation of all scores so far; the policy's numbers do not depend on it."""
    scaled, told = online_run(tmp_path / "scaled", OnlineSetting("ppo", steps=2))
    train_online(scaled)
    first = told.reports[0].metrics
    assert first["reward_scale"] == pytest.approx(first["reward_std"])
    assert told.reports[1].metrics["reward_scale"] != pytest.approx(told.reports[1].metrics["reward_std"], rel=1e-3)
    newest = newest_saved(tmp_path / "scaled").here()
    resumed, _ = online_run(tmp_path / "scaled", OnlineSetting("ppo", steps=2), start=newest)
    assert resumed.position.scores == scaled.position.scores
    assert resumed.position.scores.count == 2 * 16

    plain, other = online_run(tmp_path / "plain", OnlineSetting("ppo", steps=1, reward_scaling="none"))
    train_online(plain)
    assert other.reports[0].metrics["reward_scale"] == 1
    assert other.reports[0].metrics["loss"] == pytest.approx(first["loss"], rel=1e-6)
    assert other.reports[0].grad_norm == pytest.approx(told.reports[0].grad_norm, rel=1e-6)


def test_the_critic_alone_learns_until_it_is_warm(tmp_path: Path) -> None:
    run, recorder = online_run(tmp_path, OnlineSetting(steps=2, warmup=4))
    before = {name: tensor.clone() for name, tensor in run.trainees.engine.full_weights()}
    train_online(run)
    first, second = recorder.reports
    assert "loss" not in first.metrics
    assert first.metrics["value_loss"] > 0
    assert "loss" in second.metrics
    assert recorder.versions == [2]
    assert any(not torch.equal(before[name], tensor) for name, tensor in run.trainees.engine.full_weights())


def test_updates_end_where_the_policy_has_gone_far_enough(tmp_path: Path) -> None:
    far = OnlineSetting("grpo", steps=1, epochs=4, learning_rate=3e-2, max_update_kl=1e-3)
    run, _ = online_run(tmp_path, far)
    train_online(run)
    assert 1 < run.trainees.engine.steps < 8


def test_every_completion_is_in_one_minibatch_of_an_epoch() -> None:
    parts = minibatches(GROUPS, [True] * 4, 3, (0, 1, 2))
    assert Counter(index for part in parts for index in part) == Counter(range(4))
    assert minibatches(GROUPS, [True] * 4, 3, (0, 1, 2)) == parts
    assert len(minibatches(GROUPS, [True] * 4, 1, (0, 0, 0))) == 4
    assert len(minibatches(GROUPS, [True] * 4, 100, (0, 0, 0))) == 1


def test_completions_of_a_prompt_share_it_where_they_meet() -> None:
    cut = subgroups(GROUPS, (1, 0, 2, 3))
    assert cut == [(PromptGroup((1, 2), ((5,), (3, 4))), (1, 0)), (PromptGroup((6,), ((7, 8, 9), (10,))), (2, 3))]
    shares = plan_micros(GROUPS, (1, 2), ranks=2, micro_tokens=100)
    assert sorted(index for share in shares for micro in share if micro.counts for index in micro.indices) == [1, 2]


def test_an_experience_survives_its_file(tmp_path: Path) -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 0, 0]]).float()
    fields = ("learnt", "rollout_logprobs", "policy_logprobs", "ref_logprobs", "values", "advantages", "returns")
    experience = Experience(GROUPS, mask, **{name: torch.randn(4, 3) * mask for name in fields})
    write_parts(Folder(tmp_path), [experience_draft(experience)])
    back = load_experience(tmp_path)
    assert back.groups == GROUPS
    assert all(torch.equal(getattr(back, name), getattr(experience, name)) for name in ("mask", *fields))
    assert experience.flat("values", (2, 1)).tolist() == [
        *experience.values[2].tolist(),
        experience.values[1, 0].item(),
    ]
