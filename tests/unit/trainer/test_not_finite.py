"""What is not finite is never applied, is counted and named, and ends an attempt that has too much of it."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import rank_bodies
import torch
from online_runs import OnlineSetting, online_run
from ranks import run_ranks
from roles import TinyJob
from tiny_runs import Setting, newest_saved, tiny_engine, tiny_run

from alignment_trainer.checkpoint.run_state import Position, Skips, draft_trainee, restore
from alignment_trainer.data.experience import Rollout
from alignment_trainer.engines.base import all_or_nothing
from alignment_trainer.loop import guard
from alignment_trainer.loop.online import OnlineRun
from alignment_trainer.loop.train import train, train_online
from alignment_trainer.process.errors import UserError, failure_of

pytest.importorskip("deepspeed")
ROW = rank_bodies.POISONED_ROW
STEPS = 3
"""An epoch of 12 rows in batches of 4: the poisoned row is in one of its steps."""
ENGINES = {1: ("none", "fsdp2", "zero2", "zero3"), 2: ("fsdp2", "zero2", "zero3")}
CASES = [(ranks, sharding) for ranks, shardings in ENGINES.items() for sharding in shardings]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, list[dict[str, Any]]]:
    """Ranks -> what each of them saw."""
    return {
        ranks: run_ranks(
            ranks,
            "rank_bodies:poisoned",
            folder=str(tmp_path_factory.mktemp("poisoned")),
            shardings=list(shardings),
            steps=STEPS,
        )
        for ranks, shardings in ENGINES.items()
    }


@pytest.mark.parametrize(("ranks", "sharding"), CASES)
def test_a_step_with_a_row_that_is_not_finite_moves_nothing_on_any_rank(ranks, sharding, found):
    skipped = [not math.isfinite(norm) for norm in found[ranks][0][sharding]["norms"]]
    assert sum(skipped) == 1
    for of_rank in found[ranks]:
        assert of_rank[sharding]["moved"] == [not skip for skip in skipped]
        assert of_rank[sharding]["skips"] == {"steps": STEPS, "skipped": 1, "in_a_row": int(skipped[-1])}
        assert of_rank[sharding]["steps"] == STEPS - 1


@pytest.mark.parametrize(("ranks", "sharding"), CASES)
def test_the_steps_around_a_skipped_one_are_the_same_for_every_engine(ranks, sharding, found):
    ours, plain = found[ranks][0][sharding], found[1][0]["none"]
    assert ours["losses"] == pytest.approx(plain["losses"], rel=2e-5, nan_ok=True)
    assert ours["weights"] == pytest.approx(plain["weights"], rel=1e-4, abs=1e-4)


def test_the_log_names_the_row_and_not_its_neighbours(tmp_path, caplog):
    run, _ = tiny_run(tmp_path, Setting(steps=STEPS))
    run.rows.reference[ROW - 1, 0] = torch.inf
    with caplog.at_level(logging.WARNING):
        train(run)
    (line,) = [record for record in caplog.records if hasattr(record, "skipped_steps")]
    assert line.rows == [ROW]
    assert f"rows of the data: {ROW}" in line.getMessage()


def test_what_was_skipped_is_counted_on_after_a_resume(tmp_path):
    run, recorder = tiny_run(tmp_path, Setting(steps=STEPS, checkpoint_every=1))
    run.rows.reference[ROW - 1, 0] = torch.nan
    train(run)
    position = restore(newest_saved(tmp_path).here(), tiny_engine(Setting()))
    assert position.skips == run.position.skips == Skips(STEPS, 1, position.skips.in_a_row)
    assert recorder.reports[-1].metrics["skipped_steps"] == 1.0


def test_a_position_of_before_steps_were_counted_has_skipped_none(tmp_path):
    (tmp_path / "position.json").write_text('{"step": 4, "tokens": 100}')
    assert Position.read(tmp_path) == Position(4, 100)


def test_three_steps_in_a_row_end_the_attempt_for_good(tmp_path):
    run, recorder = tiny_run(tmp_path, Setting(rows=4, steps=9, checkpoint_every=1))
    run.rows.reference[1] = torch.nan
    with pytest.raises(UserError, match=r"3 of 3 optimizer steps .*\(3 in a row\).* rows 2 of the data") as error:
        train(run)
    assert "`learningRate`" in str(error.value)
    assert "`precision: fp32`" in str(error.value)
    assert failure_of(error.value).retryable is False
    assert len(recorder.reports) == 2  # both skipped; the third one ended it
    assert all(weight.isfinite().all() for _, weight in run.engine.full_weights())


@pytest.mark.parametrize(
    ("before", "ends"),
    [
        (Skips(0, 0, 0), False),
        (Skips(1, 1, 0), False),  # two of the first steps are free
        (Skips(2, 2, 0), True),
        (Skips(298, 2, 0), True),  # 3 of 299 is more than one in a hundred
        (Skips(299, 2, 0), False),  # 3 of 300 is not
        (Skips(9999, 99, 0), False),
        (Skips(9999, 99, 1), False),
        (Skips(9999, 99, 2), True),  # three in a row, whatever the share
        (Skips(9999, 100, 0), True),
    ],
)
def test_when_it_is_too_much(before, ends):
    def once_more() -> Skips:
        return guard.count(before, 7, (math.nan,), 1e-3, (5,))

    if ends:
        with pytest.raises(UserError, match="rows 5 of the data"):
            once_more()
    else:
        assert once_more() == Skips(before.steps + 1, before.skipped + 1, before.in_a_row + 1)


def test_a_finite_step_ends_a_row_of_skipped_ones():
    assert guard.count(Skips(10, 2, 2), 11, (1.0, 2.0), 1e-3, ()) == Skips(11, 2, 0)


def test_a_critic_that_was_skipped_counts_as_the_policy_does():
    assert guard.count(Skips(), 1, (1.0, math.inf), 1e-3, (1,)) == Skips(1, 1, 1)


def test_a_gradient_that_overflows_blames_the_whole_batch():
    losses = [((3, 1), torch.tensor([0.5, 0.7])), ((2,), torch.tensor([1e30]))]
    assert guard.rows_to_blame(losses, (3, 1, 2)) == (1, 2, 3)
    losses[1] = ((2,), torch.tensor([torch.inf]))
    assert guard.rows_to_blame(losses, (3, 1, 2)) == (2,)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_has_no_finite_gradient(odd):
    """Its parts may have one: a constant that is infinite adds nothing to the gradient of the rest."""
    weight = torch.tensor([2.0, 3.0], requires_grad=True)
    all_or_nothing((weight * weight).sum() + odd).backward()
    assert weight.grad.isnan().all()


def test_a_finite_loss_keeps_its_gradient_to_the_bit():
    weight = torch.tensor([2.1, -3.7], requires_grad=True)
    all_or_nothing((weight.exp()).sum()).backward()
    assert torch.equal(weight.grad, weight.detach().exp())


def _spoil(engine: Any) -> str:
    """Makes one number of the weights infinite; the weight's name."""
    name, parameter = next(iter(engine._scorer.named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[3] = torch.inf
    return engine._scorer.hub_names[name]


def test_a_state_that_is_not_finite_is_not_written_and_names_its_tensor():
    engine = tiny_engine(Setting())
    name = _spoil(engine)
    with pytest.raises(UserError, match=f"weight/{name} holds numbers that are not finite") as error:
        draft_trainee(engine)
    assert failure_of(error.value).retryable is False


def spoil_reference(run: OnlineRun, step: int) -> int:
    """One log-prob of the reference is not a number in that step; the row of its prompt."""
    clients, spoilt = run.services.clients, []
    reference = clients.reference

    def spoiling(rollout: Rollout) -> torch.Tensor | None:
        values = reference(rollout)
        if values is not None and not spoilt and run.position.step + 1 == step:
            spoilt.append(rollout.rows[0].row)
            values[0] = math.nan
        return values

    clients.reference = spoiling
    return run.prompts.of_step(step - 1)[0].row


def test_an_online_update_that_is_not_finite_is_left_out_and_named(tmp_path, caplog):
    """GRPO: two epochs of two updates a step; the prompt with the odd log-prob is in one of each epoch."""
    run, recorder = online_run(tmp_path, OnlineSetting(algorithm="grpo", steps=2))
    row = spoil_reference(run, step=1)
    with caplog.at_level(logging.WARNING):
        train_online(run)
    assert [record.rows for record in caplog.records if hasattr(record, "skipped_steps")] == [[row], [row]]
    assert run.position.skips == Skips(8, 2, 0)
    assert [report.metrics["skipped_steps"] for report in recorder.reports] == [2.0, 2.0]
    assert all(math.isfinite(report.metrics["loss"]) for report in recorder.reports)
    assert all(weight.isfinite().all() for _, weight in run.trainees.engine.full_weights())


def test_actor_critic_and_coefficient_outlive_what_is_not_finite(tmp_path):
    """PPO whitens over the batch, so one odd number is in every update of the actor: three of them end the job."""
    run, _ = online_run(tmp_path, OnlineSetting(algorithm="ppo", steps=2))
    spoil_reference(run, step=1)
    before = run.position.kl_coef
    with pytest.raises(UserError, match=r"3 of 3 optimizer steps .* rows"):
        train_online(run)
    assert run.position.kl_coef == before
    for engine in (run.trainees.engine, run.trainees.critic._begun()._engine):
        assert all(weight.isfinite().all() for _, weight in engine.full_weights())


@pytest.mark.timeout(300)
def test_a_learning_rate_that_breaks_the_model_ends_the_job_with_the_cure(tmp_path: Path) -> None:
    training = {"learningRate": 1e25, "warmupFraction": 0.0, "maxSteps": 12}
    job = TinyJob(tmp_path, spec={"training": training, "roles": {"reference": {"placement": "withPolicy"}}})
    for role, code in (("prepare", 0), ("policy", 1)):
        process = job.fork(role)
        process.join(240)
        assert process.exitcode == code
    failure = job.outcome("policy").failure
    assert failure is not None
    assert (failure.reason, failure.retryable) == ("NotFinite", False)
    assert "3 of 4 optimizer steps" in failure.message
    assert "at a learning rate of" in failure.message
    assert "rows" in failure.message
    assert not (tmp_path / "run" / "model").exists()
