import math
import random

import pytest
import torch

from alignment_trainer.algorithms.dpo import Dpo, share_positive
from alignment_trainer.algorithms.losses import PairLogprobs, dpo_loss, policy_loss, reward_model_loss, value_loss

POLICY = PairLogprobs(torch.tensor([-1.0, -5.0], requires_grad=True), torch.tensor([-3.0, -4.0], requires_grad=True))
REFERENCE = PairLogprobs(torch.tensor([-2.0, -5.0]), torch.tensor([-2.5, -4.0]))


def test_dpo_loss_matches_values_worked_out_by_hand():
    """h = 0.1 (2 - 0.5) = 0.15 and 0.1 (-1 + 1) = 0; ln(1 + e^-0.15) = 0.620957, ln 2 = 0.693147."""
    assert dpo_loss(POLICY, REFERENCE, beta=0.1).tolist() == pytest.approx([0.620957, 0.693147], abs=1e-6)


def test_label_smoothing_mixes_in_the_flipped_loss():
    """-log s(-0.15) is 0.15 more than -log s(0.15): 0.620957 + 0.1 x 0.15."""
    assert dpo_loss(POLICY, REFERENCE, beta=0.1, label_smoothing=0.1)[0].item() == pytest.approx(0.635957, abs=1e-6)


def test_dpo_gradient_is_the_papers():
    """Rafailov 2023, section 4: beta s(-h) down for the chosen, up for the rejected; s(-0.15) = 0.462570."""
    chosen, rejected = torch.autograd.grad(
        dpo_loss(POLICY, REFERENCE, beta=0.1).sum(), [POLICY.chosen, POLICY.rejected]
    )
    assert chosen.tolist() == pytest.approx([-0.0462570, -0.05], abs=1e-6)
    assert rejected.tolist() == pytest.approx([0.0462570, 0.05], abs=1e-6)


def test_a_policy_that_equals_its_reference_starts_at_ln_2_whatever_beta():
    for beta in (0.01, 0.1, 10.0):
        assert dpo_loss(REFERENCE, REFERENCE, beta).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)


def test_metrics_are_the_implicit_rewards_of_each_pair():
    logprobs = torch.tensor([[-1.0, -3.0], [-5.0, -4.0]])
    reference = torch.tensor([[-2.0, -2.5], [-5.0, -4.0]])
    metrics = Dpo(beta=0.1).loss(logprobs, reference).metrics
    assert metrics["chosen_reward"].tolist() == pytest.approx([0.1, 0.0])
    assert metrics["rejected_reward"].tolist() == pytest.approx([-0.05, 0.0])
    assert metrics["reward_margin"].tolist() == pytest.approx([0.15, 0.0])
    assert metrics["accuracy"].tolist() == [1.0, 0.5]
    assert metrics["likelier_chosen"].tolist() == [1.0, 0.0]


def test_ties_count_a_half():
    assert share_positive(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.5, 1.0]


def losses_of(loss: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in loss.tolist()]


def test_policy_loss_by_hand():
    """rho = 1.1, 1.5, 0.5 with A = 2, then with A = -2, each clipped to 0.8 .. 1.2.

    A > 0: -2.2; -1.2 x 2 for 1.5; -0.5 x 2. A < 0: 2.2; 1.5 x 2; 0.8 x 2 for 0.5.
    """
    ratio = torch.tensor([1.1, 1.5, 0.5, 1.1, 1.5, 0.5])
    advantages = torch.tensor([2.0, 2, 2, -2, -2, -2])
    loss, clipped = policy_loss(ratio.log() - 3, torch.full((6,), -3.0), advantages, clip_ratio=0.2)
    assert losses_of(loss) == pytest.approx([-2.2, -2.4, -1.0, 2.2, 3.0, 1.6], abs=1e-5)
    assert clipped.tolist() == [False, True, False, False, False, True]


def test_dual_clip_bounds_what_a_bad_token_costs():
    """A = -2, c = 3: at most 6. rho = 2 costs 4, rho = 5 would cost 10. A good token is left as it is."""
    ratio, advantages = torch.tensor([2.0, 5.0, 5.0]), torch.tensor([-2.0, -2.0, 2.0])
    loss, clipped = policy_loss(ratio.log(), torch.zeros(3), advantages, clip_ratio=0.2, dual_clip=3.0)
    assert losses_of(loss) == pytest.approx([4.0, 6.0, -2.4], abs=1e-5)
    assert clipped.tolist() == [False, True, True]


def test_a_clipped_token_has_no_gradient_and_another_that_of_the_surrogate():
    """d(-rho A)/d log pi = -rho A: -1.1 x 2 and 1.5 x 2; nothing for 1.5 with A = 2, and for 5 beyond the dual clip."""
    logprobs = torch.tensor([1.1, 1.5, 1.5, 5.0]).log().requires_grad_()
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0])
    policy_loss(logprobs, torch.zeros(4), advantages, clip_ratio=0.2, dual_clip=3.0)[0].sum().backward()
    assert logprobs.grad.tolist() == pytest.approx([-2.2, 0.0, 3.0, 0.0], abs=1e-5)


def test_the_first_update_follows_the_policy_gradient():
    """At rho = 1 the gradient is -A, and nothing is clipped."""
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    loss, clipped = policy_loss(logprobs, logprobs.detach(), torch.tensor([1.0, -2.0, 0.0]), clip_ratio=0.2)
    loss.sum().backward()
    assert logprobs.grad.tolist() == [-1.0, 2.0, 0.0]
    assert not clipped.any()


def test_value_loss_by_hand():
    """V_old = 1, e = 0.2. V = 1.5 counts as 1.2: towards R = 2 the bound is the worse, (0.8)^2 / 2. Away from R = 0 the
    value itself is, (1.5)^2 / 2. V = 1.1 is within, (0.9)^2 / 2."""
    values, old = torch.tensor([1.5, 1.5, 1.1], requires_grad=True), torch.ones(3)
    returns = torch.tensor([2.0, 0.0, 2.0])
    loss, clipped = value_loss(values, old, returns, clip=0.2)
    assert losses_of(loss) == pytest.approx([0.32, 1.125, 0.405], abs=1e-6)
    assert clipped.tolist() == [True, False, False]
    loss.sum().backward()
    assert values.grad.tolist() == pytest.approx([0.0, 1.5, -0.9], abs=1e-6)


def test_value_loss_without_a_bound_is_half_the_squared_error():
    loss, clipped = value_loss(torch.tensor([1.5, -1.0]), torch.zeros(2), torch.tensor([2.0, 1.0]), clip=None)
    assert loss.tolist() == [0.125, 2.0]
    assert clipped.tolist() == [False, False]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dual_clip", [None, 2.0])
def test_the_clipped_losses_agree_with_a_script_of_one_token_at_a_time(seed: int, dual_clip: float | None):
    draw = random.Random(seed)
    rows = [[draw.gauss(0, 1) for _ in range(3)] for _ in range(200)]
    expected, expected_values = [], []
    for new, old, target in rows:
        ratio, nearest = math.exp(new - old), sorted([0.7, math.exp(new - old), 1.3])[1]
        objective = min(ratio * target, nearest * target)
        expected.append(-(max(objective, dual_clip * target) if dual_clip and target < 0 else objective))
        moved = old + math.copysign(min(abs(new - old), 0.3), new - old)
        expected_values.append(0.5 * max((new - target) ** 2, (moved - target) ** 2))
    new, old, target = torch.tensor(rows).T
    assert policy_loss(new, old, target, 0.3, dual_clip)[0].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert value_loss(new, old, target, 0.3)[0].tolist() == pytest.approx(expected_values, rel=1e-4, abs=1e-5)


def test_reward_model_loss_by_hand():
    """ln(1 + e^-1) = 0.313262; with a margin of 1, ln 2; centred, 0.01 x (2 + 1)^2 more."""
    chosen, rejected = torch.tensor([2.0]), torch.tensor([1.0])
    assert reward_model_loss(chosen, rejected).item() == pytest.approx(0.313262, abs=1e-6)
    assert reward_model_loss(chosen, rejected, margin=1.0).item() == pytest.approx(0.693147, abs=1e-6)
    assert reward_model_loss(chosen, rejected, center_coef=0.01).item() == pytest.approx(0.403262, abs=1e-6)


def test_reward_model_gradient_is_the_chance_that_the_rejected_one_is_better():
    """-s(rl - rw) for the chosen: s(-1) = 0.268941; centring adds 2 x 0.01 x (2 + 1) to both."""
    chosen, rejected = torch.tensor([2.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    reward_model_loss(chosen, rejected, center_coef=0.01).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.268941 + 0.06, abs=1e-6)
    assert rejected.grad.item() == pytest.approx(0.268941 + 0.06, abs=1e-6)
