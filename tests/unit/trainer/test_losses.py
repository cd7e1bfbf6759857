import math
import random

import pytest
import torch

from alignment_trainer.algorithms.losses import policy_loss, value_loss


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
