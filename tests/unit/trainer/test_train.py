import dataclasses
import math

import pytest
import torch
from tiny_runs import Setting, newest_saved, pairs, tiny_engine, tiny_llama, tiny_run

from alignment_trainer.checkpoint.run_state import restore
from alignment_trainer.engines.state import IncompleteStateError, SavedState
from alignment_trainer.loop.offline import Interrupted
from alignment_trainer.loop.train import train


def resume(folder, checkpoint, setting, reference):
    """A new process in all but name: other weights and random numbers until the checkpoint is read."""
    causal = tiny_llama(seed=99, attention_dropout=setting.dropout)
    engine = tiny_engine(setting, causal, SavedState(checkpoint).weights)
    torch.manual_seed(1234)
    run, recorder = tiny_run(folder, setting, engine, reference=reference)
    run.position = restore(checkpoint, engine)
    return run, recorder


def exact(recorder):
    return [(r.step, r.metrics, r.grad_norm, r.learning_rate) for r in recorder.reports]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_loss_is_ln_2_when_the_policy_is_its_reference(tmp_path, precision):
    run, recorder = tiny_run(tmp_path, Setting(precision=precision, steps=1))
    train(run)
    assert recorder.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert recorder.reports[0].metrics["accuracy"] == 0.5
    assert recorder.reports[0].metrics["reward_margin"] == 0.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_policy_learns_what_the_pairs_prefer(tmp_path, precision):
    run, recorder = tiny_run(tmp_path, Setting(precision=precision, steps=12))
    train(run)
    last = recorder.reports[-1].metrics
    assert recorder.losses[-1] < 0.3
    assert last["accuracy"] == 1.0
    assert last["reward_margin"] == pytest.approx(last["chosen_reward"] - last["rejected_reward"], abs=1e-5)


def test_micro_batches_change_no_gradient(tmp_path):
    """4 rows at once against one at a time: same losses and norms for 6 steps, to fp32 accuracy."""
    runs = [tiny_run(tmp_path / str(tokens), Setting(micro_tokens=tokens)) for tokens in (10**6, 1)]
    for run, _ in runs:
        train(run)
    whole, single = (recorder for _, recorder in runs)
    assert single.losses == pytest.approx(whole.losses, rel=2e-5)
    assert [r.grad_norm for r in single.reports] == pytest.approx([r.grad_norm for r in whole.reports], rel=2e-5)


def test_the_last_partial_batch_is_averaged_over_the_rows_it_has(tmp_path):
    """Two rows of a batch of 8: their mean loss, not a quarter of it."""
    run, recorder = tiny_run(tmp_path, Setting(rows=2, batch_size=8, steps=1))
    train(run)
    assert recorder.losses[0] == pytest.approx(math.log(2), abs=1e-6)


def test_a_step_is_torchs_own_adamw_on_the_mean_of_the_batch(tmp_path):
    """Against a second implementation: the model's own logits, log_softmax, DPO by its formula, AdamW by torch."""
    setting = Setting(rows=4, steps=1, weight_decay=0.0)
    run, recorder = tiny_run(tmp_path, setting)
    reference = run.rows.reference
    train(run)

    causal = tiny_llama().train()
    losses = []
    for row, pair in enumerate(pairs(4)):
        sums = []
        for completion in pair.group.completions:
            logits = causal(torch.tensor([pair.prompt + completion])).logits[0, len(pair.prompt) - 1 : -1]
            sums.append(logits.log_softmax(-1)[range(len(completion)), list(completion)].sum())
        margin = 0.1 * ((sums[0] - reference[row, 0]) - (sums[1] - reference[row, 1]))
        losses.append(torch.log1p(torch.exp(-margin)))
    torch.stack(losses).mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(causal.parameters(), setting.max_grad_norm)
    optimizer = torch.optim.AdamW(causal.parameters(), lr=setting.learning_rate, weight_decay=0.0)
    optimizer.step()

    assert recorder.reports[0].grad_norm == pytest.approx(norm.item(), rel=1e-5)
    trained = dict(run.engine.full_weights())
    for name, parameter in causal.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach(), atol=2e-5, rtol=0)


@pytest.mark.parametrize("micro_batches_seen", range(1, 19, 3))
def test_resumed_run_repeats_the_next_losses_bit_for_bit(tmp_path, micro_batches_seen):
    """Asked to go between any two micro-batches, with dropout, so that random numbers matter."""
    setting = Setting(dropout=0.2, micro_tokens=120)
    whole, expected = tiny_run(tmp_path / "whole", setting)
    reference = whole.rows.reference
    torch.manual_seed(7)
    train(whole)

    asked = iter([False] * micro_batches_seen)
    torch.manual_seed(7)
    engine = tiny_engine(setting)
    torch.manual_seed(7)
    first, before = tiny_run(tmp_path / "cut", setting, engine, lambda: next(asked, True), reference)
    with pytest.raises(Interrupted):
        train(first)
    newest = newest_saved(tmp_path / "cut")
    assert newest.step == len(before.reports)
    second, after = resume(tmp_path / "cut", newest.here(), setting, reference)
    train(second)

    assert exact(before) + exact(after) == exact(expected)
    for (name, a), (_, b) in zip(second.engine.full_weights(), whole.engine.full_weights(), strict=True):
        assert torch.equal(a, b), name


def test_a_run_killed_after_a_checkpoint_goes_on_from_it_bit_for_bit(tmp_path):
    setting = Setting(steps=6, checkpoint_every=2)
    whole, expected = tiny_run(tmp_path, setting)
    train(whole)
    checkpoint = tmp_path / "0001" / "00000004"
    second, after = resume(tmp_path / "later", checkpoint, setting, whole.rows.reference)
    train(second)
    assert exact(after) == exact(expected)[4:]


def test_saving_where_it_was_just_saved_writes_nothing_again(tmp_path):
    run, recorder = tiny_run(tmp_path, Setting(steps=2, checkpoint_every=1))
    train(run)
    written = (recorder.checkpoints[-1].here() / "manifest.json").stat().st_mtime_ns
    run.save()
    run.settle()
    assert [checkpoint.step for checkpoint in recorder.checkpoints] == [1, 2]
    assert (recorder.checkpoints[-1].here() / "manifest.json").stat().st_mtime_ns == written


def test_evaluation_comes_at_its_own_steps_and_not_after_the_last(tmp_path):
    seen = []
    run, _ = tiny_run(tmp_path, Setting(steps=6))
    run.hooks = dataclasses.replace(run.hooks, evaluate=seen.append)
    run.options = dataclasses.replace(run.options, evaluate_every=3)
    train(run)
    assert seen == [3]


def test_a_state_without_all_its_parts_is_an_error(tmp_path):
    run, recorder = tiny_run(tmp_path, Setting(steps=1))
    train(run)
    folder = recorder.checkpoints[-1].here()
    (folder / "state-00000-of-00001.safetensors").rename(folder / "state-00000-of-00002.safetensors")
    with pytest.raises(IncompleteStateError, match="found 1 parts"):
        SavedState(folder)


def test_weights_of_another_model_are_refused_by_name(tmp_path):
    run, recorder = tiny_run(tmp_path, Setting(steps=1))
    train(run)
    deeper, saved = tiny_llama(num_hidden_layers=3), SavedState(recorder.checkpoints[-1].here())
    with pytest.raises(IncompleteStateError, match=r"weight/model\.layers\.2"):
        tiny_engine(Setting(), deeper, saved.weights)
